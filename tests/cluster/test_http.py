"""The local configuration, deployed with ``serve deploy``, over HTTP."""

from __future__ import annotations

import base64
import io
import json
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image
from segment_anything.modeling import Sam

from serve_app.capabilities import SegmentRequest
from serve_app.client import HttpService
from serve_app.core.types import Prompt
from serve_app.engines.sam.model import load_sam

from ..golden.cases import PHOTOS, cases_of, check_against, iou, photo, reference_answers
from .conftest import Served
from .ray_cluster import wait_until
from .replica_logs import calls

pytestmark = [pytest.mark.cluster, pytest.mark.weights]


def png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def new_photo() -> np.ndarray:
    """A photograph that no cache has seen: one pixel of it is unique."""
    pixels = photo("chelsea").copy()
    pixels[0, :6] = np.frombuffer(uuid.uuid4().bytes + b"\0\0", np.uint8).reshape(6, 3)
    return pixels


def segment(
    client: httpx.Client, pixels: np.ndarray, name: str | None = None, **fields: Any
) -> dict[str, Any]:
    """``/v1/segment`` with a file, as a request of this name; other than a 200 fails."""
    answer = client.post(
        "/v1/segment",
        files={"file": png(pixels)},
        data={"request": json.dumps(fields)},
        headers={} if name is None else {"x-request-id": name},
    )
    assert answer.status_code == 200, answer.text
    content: dict[str, Any] = answer.json()
    return content


@pytest.fixture(scope="module")
def sam(weight_paths: Callable[[str], dict[str, Path]]) -> Sam:
    return load_sam("vit_t", weight_paths("vit_t")["checkpoint"])


@pytest.mark.parametrize("name", PHOTOS)
async def test_served_masks_equal_sam_predictors(served: Served, sam: Sam, name: str) -> None:
    """Ten prompts of all kinds in one request, through proxy, ingress, decoder and encoder."""
    prompts = [case.prompt for case in cases_of(name)]
    async with HttpService(served.url) as service:
        request = SegmentRequest(image=photo(name), task=prompts, variant="fast")
        result = await service.segment(request)
    assert (result.variant, result.model) == ("fast", "vit_t")
    references = reference_answers(sam, photo(name), prompts)
    for answer, reference in zip(result.results, references, strict=True):
        check_against(answer.masks, reference)


def test_text_finds_what_is_there_and_says_what_is_not(http: httpx.Client) -> None:
    answer = segment(http, photo("chelsea"), text=["cat", "giraffe"])
    cat, giraffe = answer["results"]
    assert answer["text_engine"] == "labels"
    assert cat["present"] is True
    assert cat["masks"][0]["label"] == "cat"
    assert cat["masks"][0]["area"] > 0.2 * answer["width"] * answer["height"]
    assert giraffe["present"] is False
    assert giraffe["masks"] == []
    assert 0 <= giraffe["best_score"] < answer["threshold"]


def test_everything_finds_several_distinct_masks(http: httpx.Client) -> None:
    grid = {"points_per_side": 6, "pred_iou_thresh": 0.8, "stability_score_thresh": 0.85}
    (found,) = segment(http, photo("astronaut"), everything=grid)["results"]
    assert len(found["masks"]) >= 4
    scores = [mask["score"] for mask in found["masks"]]
    assert scores == sorted(scores, reverse=True)
    assert min(scores) >= 0.8
    assert len({tuple(mask["bbox"]) for mask in found["masks"]}) == len(found["masks"])


def test_accurate_sleeps_until_it_is_asked_for(served: Served, http: httpx.Client) -> None:
    assert served.replicas_before_requests["accurate-encoder"] == 0
    assert served.replicas_before_requests["accurate-decoder"] == 0
    prompt = {"box": [110, 20, 330, 230], "multimask_output": False}
    answer = segment(http, photo("chelsea"), prompts=[prompt], variant="accurate")
    assert (answer["variant"], answer["model"]) == ("accurate", "sam2_hiera_tiny")
    assert answer["results"][0]["masks"][0]["area"] > 10_000
    awake = served.cluster.replicas("sam")
    assert len(awake["accurate-encoder"]) == len(awake["accurate-decoder"]) == 1


def test_twenty_identical_requests_at_once_encode_once(served: Served, http: httpx.Client) -> None:
    pixels, prompt = new_photo(), {"point_coords": [[200, 120]], "point_labels": [1]}
    names = [f"identical-{uuid.uuid4()}" for _ in range(20)]

    def ask(name: str, of: np.ndarray = pixels) -> dict[str, Any]:
        return segment(http, of, name, prompts=[prompt], variant="fast")

    with ThreadPoolExecutor(20) as pool:
        answers = list(pool.map(ask, names))
    # Not to the last digit: who shares a pass with whom is chance.
    found = [[mask["score"] for mask in answer["results"][0]["masks"]] for answer in answers]
    np.testing.assert_allclose(found, [found[0]] * len(found), rtol=0, atol=1e-3)
    again = f"again-{uuid.uuid4()}"
    assert ask(again)["cache"] == "memory"
    # The encoder's own log says how often it was asked; a later call's line comes after those.
    later = f"later-{uuid.uuid4()}"
    ask(later, new_photo())
    wait_until(lambda: calls(served, "fast-encoder", later) == 1, "the log is written", 120.0)
    assert calls(served, "fast-encoder", again, *names) == 1


def test_mixed_requests_at_once_equal_the_same_ones_alone(http: httpx.Client) -> None:
    """Prompts of different kinds, numbers of points and images share the decoder's passes."""
    requests = [
        (name, [prompt_fields(case.prompt) for case in cases_of(name)[start : start + 3]])
        for name in PHOTOS
        for start in (0, 3, 5)
    ]

    def ask(request: tuple[str, list[dict[str, Any]]]) -> dict[str, Any]:
        return segment(http, photo(request[0]), prompts=request[1], variant="fast")

    alone = [ask(request) for request in requests]
    with ThreadPoolExecutor(len(requests)) as pool:
        together = list(pool.map(ask, requests))
    for one, other in zip(alone, together, strict=True):
        for mine, theirs in zip(one["results"], other["results"], strict=True):
            for a, b in zip(mine["masks"], theirs["masks"], strict=True):
                assert abs(a["score"] - b["score"]) < 1e-3
                assert iou(mask_of(a), mask_of(b)) >= 0.999


def prompt_fields(prompt: Prompt) -> dict[str, Any]:
    """A prompt without a mask input, as JSON."""
    fields: dict[str, Any] = {"multimask_output": prompt.multimask_output}
    for name in ("point_coords", "point_labels", "box"):
        value = getattr(prompt, name)
        if value is not None:
            fields[name] = value.tolist()
    return fields


def mask_of(answer: dict[str, Any]) -> np.ndarray:
    from pycocotools import mask as coco

    told = answer["segmentation"]
    decoded: np.ndarray = coco.decode({"size": told["size"], "counts": told["counts"].encode()})
    return decoded.astype(bool)


@pytest.mark.parametrize(
    ("fields", "status", "code"),
    [
        ({"box": [1, 1, 9, 9], "variant": "huge"}, 422, "unknown_variant"),
        ({"box": [1, 1, 9, 9], "format": "bmp"}, 422, "unknown_format"),
        ({"box": [9, 9, 1, 1]}, 422, "invalid_prompt"),
        ({"point_coords": [[9_999, 5]], "point_labels": [1]}, 422, "invalid_prompt"),
        ({"text": ["cat"], "everything": True}, 422, "invalid_request"),
    ],
)
def test_errors_reach_the_caller_typed(
    http: httpx.Client, fields: dict[str, Any], status: int, code: str
) -> None:
    answer = http.post(
        "/v1/segment", files={"file": png(photo("chelsea"))}, data={"request": json.dumps(fields)}
    )
    assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)
    assert "Traceback" not in answer.text


def test_what_is_no_image_and_what_is_unknown_is_told(http: httpx.Client) -> None:
    no_image = http.post("/v1/segment", files={"file": b"GIF89a"}, data={"box": "[1,1,9,9]"})
    assert (no_image.status_code, no_image.json()["error"]["code"]) == (400, "invalid_image")
    image_id = segment(http, photo("chelsea"), box=[1, 1, 99, 99])["image_id"]
    other = image_id[:-4] + ("0000" if image_id[-4:] != "0000" else "1111")
    unknown = http.post("/v1/segment", json={"image_id": other, "box": [1, 1, 9, 9]})
    assert (unknown.status_code, unknown.json()["error"]["code"]) == (404, "unknown_image")
    known = http.post("/v1/segment", json={"image_id": image_id, "box": [1, 1, 9, 9]})
    assert (known.status_code, known.json()["cache"]) == (200, "memory")


def test_a_batch_streams_a_line_for_each_image(http: httpx.Client) -> None:
    files = [
        ("files", ("a.png", png(photo("chelsea")))),
        ("files", ("b.txt", b"no image")),
        ("files", ("c.png", png(photo("coffee")))),
    ]
    request = {"request": json.dumps({"box": [20, 20, 200, 200]})}
    with http.stream("POST", "/v1/segment/batch", files=files, data=request) as answer:
        assert answer.headers["content-type"] == "application/x-ndjson"
        # Chunked: the answer's length was not known when it began.
        assert "content-length" not in answer.headers
        lines = [json.loads(line) for line in answer.iter_lines()]
    by_index = {line["index"]: line for line in lines}
    assert sorted(by_index) == [0, 1, 2]
    assert by_index[1]["error"]["code"] == "invalid_image"
    assert len(by_index[0]["result"]["results"][0]["masks"]) == 3
    assert by_index[2]["result"]["width"] == 271


def test_metrics_tell_of_every_deployment(http: httpx.Client) -> None:
    segment(http, photo("chelsea"), box=[20, 20, 200, 200])
    seen: list[str] = []

    def there() -> bool:
        answer = http.get("/metrics")
        assert answer.headers["content-type"].startswith("text/plain")
        seen[:] = [answer.text]
        return 'deployment="fast-decoder"' in answer.text

    wait_until(there, "the decoder's metrics arrive", 120.0)
    for family in (
        "ray_serve_deployment_request_counter",
        "ray_serve_deployment_processing_latency_ms",
        "ray_serve_deployment_replica_healthy",
    ):
        assert f"# TYPE {family}" in seen[0], family


def test_models_says_what_is_deployed_and_which_text_engine(http: httpx.Client) -> None:
    told = http.get("/v1/models").json()
    # Whoever has made an int8 model has its variant, too.
    assert set(told["variants"]) - {"quantized"} == {"fast", "accurate"}
    assert told["default_variant"] == "fast"
    assert told["text"]["engine"] == "labels"
    assert told["text"]["reason"].startswith("auto:")


def test_the_articles_client_is_served(http: httpx.Client) -> None:
    """The request of the article's client: a form with JSON text in its fields."""
    answer = http.post(
        "/segment",
        files={"file": ("cat.png", png(photo("chelsea")), "image/png")},
        data={
            "model_type": "fast",
            "point_coords": json.dumps([[207, 126]]),
            "point_labels": json.dumps([1]),
        },
    )
    assert answer.status_code == 200, answer.text
    told = answer.json()
    assert told["model_used"] == "fast"
    assert len(told["masks"]) == len(told["scores"]) == 3
    mask = np.asarray(Image.open(io.BytesIO(base64.b64decode(told["masks"][0]))))
    assert mask.shape == photo("chelsea").shape[:2]
    assert set(np.unique(mask)) <= {0, 255}
    assert http.get("/health").json()["status"] == "healthy"


def test_the_ingress_has_no_torch_and_the_decoder_has(served: Served) -> None:
    replicas = served.cluster.replicas("sam")

    def libraries(deployment: str) -> str:
        return Path(f"/proc/{replicas[deployment][0]['pid']}/maps").read_text()

    assert "libtorch" not in libraries("ingress")
    assert "libtorch" in libraries("fast-decoder")
