"""The mistakes of other servers, each tried on this one.  A test for each CVE, with its name."""

from __future__ import annotations

import base64
import io
import json
import re
import tarfile
import tempfile
import tracemalloc
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch
import yaml
from fastapi import FastAPI
from PIL import Image
from starlette.datastructures import Headers
from starlette.formparsers import MultiPartParser

from serve_app.core.errors import ImageTooLarge, InvalidImage, WeightsUnavailable
from serve_app.core.limits import Limits
from serve_app.core.request import image_id
from serve_app.core.settings import Compute
from serve_app.deployments.compat.environment import ray_environment
from serve_app.embeddings.predictor import embedding_key
from serve_app.engines.sam.checkpoint import read_checkpoint
from serve_app.images import decode as images
from serve_app.images.decode import decode_image
from serve_app.models.factory import ModelSource
from serve_app.models.registry import load_registry
from tests.hostile.images import Canary, hostile_images

from .conftest import Listener, Refusal, Trap

ROOT = Path(__file__).resolve().parents[2]
POINT = {"point_coords": "[0,0]"}


def locked(package: str) -> tuple[int, ...]:
    """The version of a package that is installed everywhere."""
    lock = (ROOT / "requirements.lock").read_text(encoding="utf-8")
    (version,) = re.findall(rf"^{package}==([0-9.]+)", lock, flags=re.MULTILINE)
    return tuple(int(part) for part in version.split("."))


def png(mode: str = "RGB", size: tuple[int, int] = (8, 6), value: int = 0) -> bytes:
    buffer = io.BytesIO()
    Image.new(mode, size, value).save(buffer, format="PNG")
    return buffer.getvalue()


def texts(data: bytes) -> dict[str, Any]:
    return {"image": base64.b64encode(data).decode(), "box": [0, 0, 1, 1]}


# Models and code from the network: TorchServe, BentoML, torch


async def test_cve_2023_43654_no_api_loads_models_from_urls(
    app: FastAPI,
    client: httpx.AsyncClient,
    posts: list[str],
    listener: Listener,
    is_refusal: Refusal,
) -> None:
    # TorchServe's management interface registers `POST /models?url=...`.
    url = f"http://{listener.address}/model.mar"
    for method in ("POST", "PUT", "PATCH", "DELETE"):
        for path in ("/models", "/v1/models", "/v1/models/fast", "/workflows", "/register"):
            answer = await client.request(method, path, params={"url": url, "model_url": url})
            assert answer.status_code in (404, 405)
    for path in posts:
        for field in ("url", "model_url", "model", "weights", "checkpoint", "handler"):
            is_refusal(await client.post(path, json={**texts(png()), field: url}))
            # The article's routes take no notice of fields that they do not know.
            form = await client.post(path, data={field: url}, files={"file": png()})
            assert form.status_code == 200 or is_refusal(form) is None
            assert url not in form.text
    for variant in (url, "file:///etc/passwd", "../../x", "/root/model.pth"):
        is_refusal(await client.post("/v1/segment", json={**texts(png()), "variant": variant}))
    # The article's route takes other names for its two models, and nothing that is no such name.
    form = {"model_type": url, **POINT}
    is_refusal(await client.post("/segment", data=form, files={"file": png()}))
    assert not listener.connected
    assert not [p for p in app.openapi()["paths"] if re.search("regist|upload|load|deploy|url", p)]


def test_cve_2024_35198_weights_are_pinned_by_hash_not_by_address(tmp_path: Path) -> None:
    # TorchServe's list of allowed addresses was passed with "..": ours go by content.
    for name, spec in load_registry().models.items():
        for file in spec.files.values():
            assert re.fullmatch("[0-9a-f]{64}", file.sha256), name
    # Files of the right name and size, and a wrong hash: nothing starts with them.
    spec = load_registry().get("vit_t")
    for file in spec.files.values():
        path = tmp_path / "vit_t" / file.name
        path.parent.mkdir(exist_ok=True)
        with path.open("wb") as content:
            content.truncate(file.size)
    source = ModelSource(weights_dir=str(tmp_path), offline=True)
    with pytest.raises(WeightsUnavailable):
        source.load_encoder("vit_t", Compute())


async def test_cve_2024_2912_pickles_in_bodies_are_not_read(
    client: httpx.AsyncClient, posts: list[str], trap: Trap, is_refusal: Refusal
) -> None:
    kinds = ("vnd.bentoml+pickle", "pickle", "x-pickle", "octet-stream", "json", "x-npz")
    for path in posts:
        for payload in trap.payloads:
            for kind in kinds:
                headers = {"content-type": f"application/{kind}"}
                is_refusal(await client.post(path, content=payload, headers=headers))
            is_refusal(await client.post(path, files={"file": payload}, data=POINT))
            is_refusal(await client.post(path, json=texts(payload)))
            mask = {**texts(png()), "mask_input": base64.b64encode(payload).decode()}
            is_refusal(await client.post(path, json=mask))
    assert not trap.sprung


async def test_cve_2025_27520_no_part_of_a_form_names_its_deserialiser(
    client: httpx.AsyncClient, posts: list[str], trap: Trap, is_refusal: Refusal
) -> None:
    for path in posts:
        for payload in trap.payloads:
            for kind in ("application/vnd.bentoml+pickle", "application/python-pickle"):
                for name in ("file", "files", "request", "mask_input", "args"):
                    answer = await client.post(path, files={name: ("x", payload, kind)})
                    # The article's batch tells each image's error in a 200.
                    assert '"error"' in answer.text
                    assert answer.status_code == 200 or is_refusal(answer) is None
    assert not trap.sprung


async def test_cve_2025_32375_no_header_names_a_deserialiser(
    client: httpx.AsyncClient, posts: list[str], trap: Trap, is_refusal: Refusal
) -> None:
    # BentoML's runners believed these.
    headers = {
        "args-number": "1",
        "payload-container": "NdarrayContainer",
        "payload-meta": json.dumps({"format": "default"}),
        "batch-size": "-1",
        "content-type": "application/vnd.bentoml.multiple_outputs",
    }
    for path in ["/", *posts]:
        for payload in trap.payloads:
            is_refusal(await client.post(path, content=payload, headers=headers))
            again = headers | {"content-type": "application/json"}
            is_refusal(await client.post(path, content=payload, headers=again))
    assert not trap.sprung


def test_cve_2025_32434_checkpoints_are_tensors_alone(tmp_path: Path) -> None:
    # torch before 2.6 ran code of a file that was loaded with weights_only=True.
    assert locked("torch") >= (2, 6)
    canary = tmp_path / "canary"
    modern, legacy, tarred = (tmp_path / name for name in ("modern.pt", "legacy.pt", "tar.pt"))
    bomb = {"image_encoder.x": Canary(canary)}
    torch.save(bomb, modern)
    torch.save(bomb, legacy, _use_new_zipfile_serialization=False)
    with tarfile.open(tarred, "w") as archive:
        for name in ("storages", "tensors", "pickle"):
            member = tarfile.TarInfo(name)
            content = legacy.read_bytes()
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    for checkpoint in (modern, legacy, tarred):
        with pytest.raises(Exception, match=r"(?s)."):
            read_checkpoint("vit_t", checkpoint)
    assert not canary.exists()
    torch.load(modern, weights_only=False)  # shows that the canary would have sung
    assert canary.exists()


# Ray


def test_cve_2023_48022_whether_rays_api_asks_for_a_token_is_always_said(tmp_path: Path) -> None:
    # Jobs are code; Ray decides on its authentication by itself unless it is told.
    assert ray_environment(tmp_path)["RAY_AUTH_MODE"] in ("token", "disabled")
    commands = _starting_commands()
    assert len(commands) == 2
    for command in commands:
        assert re.search(r"\bRAY_AUTH_MODE=(token|disabled)\b", command), command


def test_cve_2025_62593_no_shipped_command_opens_rays_dashboard() -> None:
    # A browser on the machine was enough to reach it; this came with Ray 2.52.
    assert locked("ray") >= (2, 52)
    (head,) = [c for c in _starting_commands() if "--head" in c]
    assert "--dashboard-host=127.0.0.1" in head
    shipped = [ROOT / "ray_cluster.yaml", ROOT / "Makefile", ROOT / "README.md"]
    for folder, pattern in (("serve_app", "*.py"), ("configs", "*.yaml"), ("docs", "*.md")):
        shipped += (ROOT / folder).rglob(pattern)
    for path in shipped:
        text = path.read_text(encoding="utf-8")
        for match in re.finditer(r"dashboard[-_]host[=\s'\":]+([0-9a-z.:\[\]]+)", text):
            assert match[1].rstrip(".:") in ("127.0.0.1", "localhost"), f"{path}: {match[0]}"


def _starting_commands() -> list[str]:
    cluster = yaml.safe_load((ROOT / "ray_cluster.yaml").read_text(encoding="utf-8"))
    commands = cluster["head_start_ray_commands"] + cluster["worker_start_ray_commands"]
    return [command for command in commands if "ray start" in command]


# Addresses as images: vLLM, LMDeploy


async def test_cve_2025_6242_addresses_are_no_images(
    client: httpx.AsyncClient,
    posts: list[str],
    listener: Listener,
    resolved: list[Any],
    is_refusal: Refusal,
) -> None:
    for scheme in ("http", "https", "HTTP", "ftp", "file", "data", "s3", "gopher", ""):
        url = f"{scheme}://{listener.address}/image.png"
        for path in posts:
            for field in ("image", "image_id", "image_url", "url", "file", "mask_input"):
                member = {"box": [0, 0, 1, 1], field: url}
                is_refusal(await client.post(path, json=member))
                nested = {"box": [0, 0, 1, 1], field: {"url": url}}
                is_refusal(await client.post(path, json=nested))
                is_refusal(await client.post(path, data={field: url, **POINT}))
            is_refusal(await client.post(path, files={"file": url.encode()}, data=POINT))
    assert not listener.connected
    assert resolved == []


async def test_cve_2026_33626_inner_addresses_and_redirects_are_not_followed(
    client: httpx.AsyncClient, listener: Listener, resolved: list[Any], is_refusal: Refusal
) -> None:
    # Nothing checks addresses here, which could be passed: nothing takes any.
    for url in (
        "http://169.254.169.254/latest/meta-data/",
        "http://[::ffff:127.0.0.1]/",
        "http://2130706433/",
        "http://localhost.example.org/redirect",
        f"//{listener.address}/x",
        f"data:text/html,<img src=http://{listener.address}/>",
        f"data:image/png;base64,http://{listener.address}/",
        "file:///etc/passwd",
        "/etc/passwd",
    ):
        for member in ({"image": url}, {"image_id": url}):
            is_refusal(await client.post("/v1/segment", json={**member, "box": [0, 0, 1, 1]}))
            is_refusal(await client.post("/v1/embed", json=member))
            batch = {"items": [{**member, "box": [0, 0, 1, 1]}]}
            is_refusal(await client.post("/v1/segment/batch", json=batch))
    # A picture that links to another one, as formats other than ours can.
    svg = f"<svg><image href='http://{listener.address}/x.png'/></svg>".encode()
    is_refusal(await client.post("/v1/segment", files={"file": svg}, data=POINT))
    assert not listener.connected
    assert resolved == []


# The name of an image: vLLM


def test_cve_2025_46722_an_images_name_has_its_shape_and_mode() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, 9_000, dtype=np.uint8)
    shapes = [(30, 100), (100, 30), (3_000, 1), (1, 3_000), (60, 50)]
    names = [image_id(pixels.reshape(*shape, 3)) for shape in shapes]
    assert len({name.split("-")[1] for name in names}) == len(shapes)
    keys = {embedding_key(name, "w" * 64, "sam-1", "float32") for name in names}
    assert len(keys) == len(shapes)
    # The same bytes as gray, as palette indices and as colours are other pictures.
    as_modes = []
    for mode in ("L", "P", "RGB"):
        size = (20, 10) if mode == "RGB" else (20, 30)
        picture = Image.frombytes(mode, size, pixels[:600].tobytes())
        if mode == "P":
            picture.putpalette([255 - i // 3 for i in range(768)])
        buffer = io.BytesIO()
        picture.save(buffer, format="PNG")
        as_modes.append(image_id(decode_image(buffer.getvalue(), Limits())))
    assert len(set(as_modes)) == 3


# What errors tell: vLLM


async def test_cve_2026_22778_no_word_of_a_library_reaches_the_caller(
    client: httpx.AsyncClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_refusal: Refusal
) -> None:
    # Pillow names the object, and with it its address, that it cannot identify.
    said = re.compile(r"0x[0-9a-f]+|object at|BytesIO|PIL|Traceback|Error|/[a-z]+/|\\|line \d")
    for case in hostile_images(27, 22_778, tmp_path / "canary"):
        answer = await client.post("/v1/segment", json=texts(case.data))
        if answer.status_code != 200:
            is_refusal(answer)
            assert not said.search(answer.json()["error"]["message"]), case.kind

    def refuse(*args: Any, **kwargs: Any) -> Any:
        raise OSError("cannot identify image file <_io.BytesIO object at 0x7f0011223344>")

    monkeypatch.setattr(images.Image, "open", refuse)
    answer = await client.post("/v1/segment", json=texts(png(value=3)))
    is_refusal(answer)
    assert not said.search(answer.text)
    # Not of a fault of our own either.
    monkeypatch.setattr("serve_app.images.store.read_image", refuse)
    answer = await client.post("/v1/segment", json=texts(png(value=4)))
    assert answer.status_code == 500
    assert not said.search(answer.json()["error"]["message"])


# Bombs: Pillow


def test_cve_2026_40192_only_usual_formats_and_only_after_their_size_was_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # A compressed FITS file grew without bound while it was decoded, up to Pillow 12.1.
    assert locked("pillow") >= (12, 2)
    opened: list[Any] = []
    original = images.Image.open

    def spied(file: Any, *args: Any, **kwargs: Any) -> Any:
        opened.append(kwargs.get("formats"))
        return original(file, *args, **kwargs)

    monkeypatch.setattr(images.Image, "open", spied)
    fits = b"SIMPLE  =                    T" + b" / FITS".ljust(2_850)
    cards = [b"XTENSION= 'BINTABLE'", b"ZIMAGE  =                    T", b"END"]
    fits += b"".join(card.ljust(80) for card in cards).ljust(2_880)
    for foreign in (fits, b"%!PS-Adobe-3.0 EPSF-3.0", b"8BPS\0\1", b"\0\0\1\0", b"DDS "):
        with pytest.raises(InvalidImage):
            decode_image(foreign, Limits())
    assert opened == []
    usual = {"JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF"}
    for kind in usual:
        buffer = io.BytesIO()
        # Samples of whole bytes would not come to Pillow in TIFF.
        Image.new("1" if kind == "TIFF" else "RGB", (9, 9)).save(buffer, format=kind)
        decode_image(buffer.getvalue(), Limits())
    assert sorted(opened) == sorted((kind,) for kind in usual)

    def load(self: Any) -> Any:
        raise AssertionError("decoded before its size was checked")

    large = png(size=(200, 3))
    monkeypatch.setattr(images.Image.Image, "load", load)
    with pytest.raises(ImageTooLarge):
        decode_image(large, Limits(max_image_side=100))


# Forms: Starlette


async def endless(head: bytes, total: int) -> AsyncIterator[bytes]:
    """A form whose only part is as long as ``total``."""
    yield b'--x\r\ncontent-disposition: form-data; name="file"' + head + b"\r\n\r\n"
    piece = b"y" * 2**16
    for _ in range(total // len(piece)):
        yield piece
    yield b"\r\n--x--\r\n"


FORM = {"content-type": "multipart/form-data; boundary=x"}


async def test_cve_2024_47874_the_memory_of_a_form_is_bounded(
    client: httpx.AsyncClient, is_refusal: Refusal
) -> None:
    # A part without a file name was kept in memory whole, however long.
    assert locked("starlette") >= (0, 40)
    limits = Limits()
    for path in ("/v1/segment", "/segment"):
        for head, most in ((b"", limits.max_field_bytes), (b'; filename="x"', None)):
            tracemalloc.start()
            try:
                content = endless(head, 300 * 2**20)
                answer = await client.post(path, content=content, headers=FORM)
                peak = tracemalloc.get_traced_memory()[1]
            finally:
                tracemalloc.stop()
            is_refusal(answer)
            # Growing, a buffer may be there twice.
            assert peak < 2 * (most or limits.max_body_bytes) + 16 * 2**20, (path, head)


async def test_cve_2025_54121_a_large_file_part_does_not_block_on_a_disk(
    client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Starlette wrote large parts to a temporary file on the event loop's thread.
    assert locked("starlette") >= (0, 47, 2)
    rolled: list[int] = []
    original = tempfile.SpooledTemporaryFile.rollover

    def rollover(self: Any) -> None:
        rolled.append(1)
        original(self)

    monkeypatch.setattr(tempfile.SpooledTemporaryFile, "rollover", rollover)
    file = png() + bytes(20 * 2**20)
    answer = await client.post("/v1/segment", files={"file": file}, data=POINT)
    assert answer.status_code == 200
    assert rolled == []
    # Starlette's own parser would have.
    await MultiPartParser(Headers(FORM), endless(b'; filename="x"', 5 * 2**20)).parse()
    assert rolled
