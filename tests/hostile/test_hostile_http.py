"""Hostile image files over HTTP: a declared answer, soon, in bounded memory; nothing executed.

400 cases of 28 kinds; ``SAM_SERVE_HOSTILE_IMAGES`` asks for another number.
"""

from __future__ import annotations

import base64
import itertools
import json
import os
import random
import statistics
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from ..clocks import repeat_if_slow
from .answering import application, send
from .images import HostileImage, hostile_images, picture, saved

pytestmark = pytest.mark.slow

CASES = int(os.environ.get("SAM_SERVE_HOSTILE_IMAGES", "400"))
SEED = 20_261
MOST_WORK = 500
"""A case may take so many times the processor's time of a usual one."""
MORE_BYTES = 150 * 2**20
FIELD = "-----------------------------hostile"
PLAN = {
    *("truncated", "flipped bits", "wrong CRC", "65535 squared header", "16k squared bomb"),
    *("zTXt bomb", "iCCP bomb", "many frames", "progressive JPEG", "JPEG scan flood", "CMYK"),
    *("16 bits and floats", "palette", "EXIF rotation", "broken EXIF", "another format renamed"),
    *("PNG and zip polyglot", "zero side", "one pixel", "1 x 30000", "base64 junk"),
    "pickle canary",
}
"""Of the 28 kinds those without which the test would not show what it is to show."""

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Asked:
    """A request with a hostile image in it."""

    path: str
    content_type: str
    body: bytes


def as_form(path: str, file: bytes, name: str, fields: dict[str, str]) -> Asked:
    """As browsers and curl send it, whatever it is, under the name of a PNG."""
    lines = [
        f'--{FIELD}\r\ncontent-disposition: form-data; name="{key}"\r\n\r\n{value}\r\n'.encode()
        for key, value in fields.items()
    ]
    head = f'--{FIELD}\r\ncontent-disposition: form-data; name="{name}"; filename="a.png"\r\n'
    lines += [head.encode(), b"content-type: image/png\r\n\r\n", file, b"\r\n"]
    body = b"".join([*lines, f"--{FIELD}--\r\n".encode()])
    return Asked(path, f"multipart/form-data; boundary={FIELD}", body)


def as_json(path: str, image: str, **more: Any) -> Asked:
    return Asked(path, "application/json", json.dumps({"image": image, **more}).encode())


def asked(index: int, case: HostileImage) -> Asked:
    """The case by one of the ways an image can come."""
    point = {"point_coords": "[0,0]"}
    text = base64.b64encode(case.data).decode()
    ways = (
        lambda: as_form("/v1/segment", case.data, "file", point),
        lambda: as_json("/v1/segment", text, box=[0, 0, 1, 1]),
        lambda: as_form("/v1/embed", case.data, "file", {}),
        lambda: as_json("/v1/embed", f"data:image/png;base64,{text}"),
        lambda: as_form("/segment", case.data, "file", {"model_type": "fast"}),
    )
    return ways[index % len(ways)]()


def not_base64(count: int) -> Iterator[tuple[HostileImage, Asked]]:
    """Texts that are no base64, or not of an image."""
    rng = random.Random(SEED)
    good = base64.b64encode(saved(picture(rng), "PNG")).decode()
    for index in range(count):
        # No bytes have a text of 4 n + 1 characters; without its padding it would be accepted.
        cut, odd = good[: len(good) - 7], good[:30] + "\0" + good[30:]
        junk = [cut, odd, f"{good}ä", "=" * 5_000, "%PNG" * 1_000]
        case = HostileImage("base64 junk", b"", "refused")
        yield case, as_json("/v1/segment", junk[index % len(junk)], box=[0, 0, 1, 1])


def cases(canary: Path) -> Iterator[tuple[HostileImage, Asked]]:
    plain = hostile_images(CASES - CASES // 28, SEED, canary)
    files = ((case, asked(index, case)) for index, case in enumerate(plain))
    return itertools.chain(files, not_base64(CASES // 28))


@contextmanager
def answering(*options: str) -> Iterator[subprocess.Popen[bytes]]:
    """The application in a process of its own, whose memory is its own."""
    command = [sys.executable, "-m", "tests.hostile.answering", *options]
    pipe = subprocess.PIPE
    process = subprocess.Popen(command, stdin=pipe, stdout=pipe, cwd=ROOT)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def answer_to(process: subprocess.Popen[bytes], request: Asked) -> dict[str, Any]:
    assert process.stdin is not None
    assert process.stdout is not None
    send(process.stdin, request.path, request.content_type, request.body)
    answer: dict[str, Any] = json.loads(process.stdout.readline())
    return answer


def timed_answer(process: subprocess.Popen[bytes], request: Asked) -> tuple[dict[str, Any], float]:
    answer = answer_to(process, request)
    return answer, answer["seconds"]


def warmed(process: subprocess.Popen[bytes]) -> tuple[int, float]:
    """Memory, and usual seconds, of a process that has answered usual requests of each kind."""
    rng = random.Random(SEED)
    usual = [HostileImage("usual", saved(picture(rng), "JPEG"), "decoded") for _ in range(5)]
    rounds = [[answer_to(process, asked(i, case)) for i, case in enumerate(usual)] for _ in "ab"]
    answers = rounds[-1]  # the first builds what the next ones use
    assert [a["status"] for a in answers] == [200] * 5
    return int(answers[-1]["peak_bytes"]), statistics.median(a["seconds"] for a in answers)


def test_hostile_images_over_http(tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    declared = {
        path: set(item["post"]["responses"])
        for path, item in application().openapi()["paths"].items()
        if "post" in item
    }
    seen: Counter[str] = Counter()
    slowest = 0.0
    with answering() as process:
        before, usual_s = warmed(process)
        for index, (case, request) in enumerate(cases(canary)):
            answer, seconds = repeat_if_slow(
                lambda sent=request: timed_answer(process, sent), MOST_WORK * usual_s
            )
            where = f"case {index}, {case.kind}, {request.path}: {answer['text'][:200]}"
            seen[case.kind] += 1
            slowest = max(slowest, seconds)
            assert seconds < MOST_WORK * usual_s, where
            assert answer["peak_bytes"] - before < MORE_BYTES, where
            assert str(answer["status"]) in declared[request.path], where
            assert not canary.exists(), where
            if answer["status"] == 200:
                assert case.outcome != "refused", where
            else:
                assert case.outcome != "decoded", where
                _check_refusal(answer, where)
        more = (answer["peak_bytes"] - before) / 2**20
    assert (sum(seen.values()), len(seen)) == (CASES, 45)
    assert seen.keys() >= PLAN
    print(
        f"{CASES} hostile images: slowest {slowest / usual_s:.0f} times a usual one, "
        f"memory +{more:.0f} MiB"
    )


def _check_refusal(answer: dict[str, Any], where: str) -> None:
    assert 400 <= answer["status"] < 500, where
    assert len(answer["text"]) < 2_048, where
    error = json.loads(answer["text"])["error"]
    assert error["code"] in ("invalid_image", "image_too_large", "invalid_request"), where
    for trace in ("/", "\\", "0x", "Traceback", "Error", "PIL", "<", "object at"):
        assert trace not in error["message"], where


def test_a_leak_would_be_seen(tmp_path: Path) -> None:
    """The same measurement, of a process that keeps 4 MB of each request."""
    rng = random.Random(SEED)
    case = HostileImage("usual", saved(picture(rng), "JPEG"), "decoded")
    with answering("--leak") as process:
        before, _ = warmed(process)
        peaks = [answer_to(process, asked(i, case))["peak_bytes"] for i in range(45)]
    assert peaks[-1] - before > MORE_BYTES
    with answering() as process:
        before, _ = warmed(process)
        peaks = [answer_to(process, asked(i, case))["peak_bytes"] for i in range(45)]
    assert peaks[-1] - before < MORE_BYTES / 10
