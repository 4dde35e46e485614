"""The article's client, as it was written, against the article's routes."""

from __future__ import annotations

import base64
import io
import logging

import httpx
import numpy as np
import pytest
from PIL import Image

from serve_app.connectors.article import ArticleBatchResponse, ArticleHealth, ArticleResponse
from serve_app.core.errors import InvalidImage, Overloaded, UnknownVariant

JPEG = b"\xff\xd8 a photo"


class ArticleClient:
    """What the article's applications send, and how they read the answer."""

    def __init__(self, http: httpx.AsyncClient) -> None:
        self._http = http

    async def segment(self, image: bytes, model_type: str, **prompts: object) -> list[np.ndarray]:
        fields = {name: str(value) for name, value in prompts.items()}
        answer = await self._http.post(
            "/segment",
            files={"file": ("image.jpg", image, "image/jpeg")},
            data={"model_type": model_type, **fields},
        )
        answer.raise_for_status()
        told = answer.json()
        assert told["model_used"] == model_type
        assert len(told["scores"]) == len(told["masks"])
        return [np.array(Image.open(io.BytesIO(base64.b64decode(m)))) > 127 for m in told["masks"]]


async def test_the_articles_client_runs_unchanged(client, service):
    article = ArticleClient(client)
    by_box = await article.segment(JPEG, "fast", box=[3, 4, 20, 20])
    by_points = await article.segment(
        JPEG, "accurate", point_coords=[[5, 6], [7, 8]], point_labels=[1, 0]
    )
    by_both = await article.segment(
        JPEG, "fast", point_coords=[5, 6], point_labels=[1], box=[3.5, 4, 20, 20]
    )
    for masks in (by_box, by_points, by_both):
        assert len(masks) == 3
        np.testing.assert_array_equal(masks[0], service.array)
    first, second, third = service.requests
    assert first.image == JPEG
    assert first.task.prompts[0].box.tolist() == [3, 4, 20, 20]
    assert second.variant == "accurate"
    assert second.task.prompts[0].point_coords.tolist() == [[5, 6], [7, 8]]
    assert second.task.prompts[0].point_labels.tolist() == [1, 0]
    assert third.task.prompts[0].point_coords.tolist() == [[5, 6]]
    assert (await client.get("/health")).json()["status"] == "healthy"


async def test_fields_may_be_in_the_query(client, service):
    answer = await client.post(
        "/segment",
        params={"model_type": "accurate", "point_coords": "[[5, 6]]", "box": ""},
        files={"file": ("x.jpg", JPEG)},
    )
    ArticleResponse.model_validate_json(answer.content)
    assert answer.json()["model_used"] == "accurate"
    assert service.requests[0].task.prompts[0].point_labels.tolist() == [1]
    both = await client.post(
        "/segment?model_type=quantized",
        files={"file": ("x.jpg", JPEG)},
        data={"model_type": "fast", "box": "[1,2,3,4]"},
    )
    assert both.json()["model_used"] == "fast"


async def test_prompts_may_be_sent_as_files_and_are_shown_their_form(client, service):
    """As Swagger UI does with fields that hold lists."""
    files = {"file": ("x.jpg", JPEG), "box": ("blob", "[1,2,3,4]", "application/json")}
    assert (await client.post("/segment", files=files)).status_code == 200
    assert service.requests[0].task.prompts[0].box.tolist() == [1, 2, 3, 4]
    answer = await client.post("/segment", files={"file": JPEG}, data={"box": "1,2,3,4"})
    assert answer.json()["detail"] == "box must be JSON text: [x0, y0, x1, y1]"


async def test_without_a_prompt_the_centre_is_segmented(client, service):
    answer = await client.post("/segment", files={"file": ("x.jpg", JPEG)})
    assert answer.status_code == 200, answer.text
    assert service.embedded == [(JPEG, "fast")]
    assert service.requests[0].image == JPEG  # an id might be forgotten in between
    assert service.requests[0].task.prompts[0].point_coords.tolist() == [[16, 12]]
    assert service.requests[0].variant == "fast"


@pytest.mark.parametrize(
    "fields",
    [
        {"model_type": "huge"},
        {"model_type": "auto"},
        {"box": "[1, 2"},
        {"box": "[4, 3, 2, 1]"},
        {"box": "__import__('os').system('true')"},
        {"point_coords": "[[1, 2, 3]]"},
        {"point_coords": '{"a": 1}'},
        {"point_coords": "[[1, 2]]", "point_labels": "[1, 0]"},
        {"point_labels": "[1]"},
    ],
    ids=lambda fields: next(iter(fields.values())),
)
async def test_bad_input_is_a_400(client, service, fields):
    answer = await client.post("/segment", files={"file": ("x.jpg", JPEG)}, data=fields)
    assert answer.status_code == 400, answer.text
    told = answer.json()
    assert told["detail"] == told["error"]["message"]
    assert "os" not in told["detail"].split()
    assert service.requests == []


async def test_a_missing_or_empty_file_is_a_400(client):
    assert (await client.post("/segment", files={"box": (None, "[1,2,3,4]")})).status_code == 400
    assert (await client.post("/segment", files={"file": ("x", b"")})).status_code == 400
    assert (await client.post("/segment", json={})).status_code == 400
    assert (await client.post("/segment")).status_code == 400


async def test_quantized_that_is_not_deployed(client, service):
    service.failure = UnknownVariant("the variants here are: fast", "variant")
    answer = await client.post(
        "/segment",
        files={"file": ("x.jpg", JPEG)},
        data={"model_type": "quantized", "box": "[1,2,3,4]"},
    )
    assert answer.status_code == 400
    assert "quantized is not deployed" in answer.json()["detail"]


async def test_other_errors_keep_their_status(client, service):
    service.failure = Overloaded("full")
    answer = await client.post("/segment", files={"file": ("x.jpg", JPEG)})
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
    big = await client.post("/segment", files={"file": ("x.jpg", b"a" * 5_000_000)})
    assert big.status_code == 413


async def test_batch(client, service, caplog):
    async def fail(request: object) -> None:
        if len(service.requests) == 2:
            raise InvalidImage("not an image")
        if len(service.requests) == 3:
            raise RuntimeError("secret")

    service.hook = fail
    files = [("files", ("x.jpg", bytes([i]))) for i in range(4)]
    with caplog.at_level(logging.ERROR):
        answer = await client.post("/segment_batch", files=files, data={"model_type": "fast"})
    assert answer.status_code == 200, answer.text
    ArticleBatchResponse.model_validate_json(answer.content)
    results = answer.json()["results"]
    assert [tuple(r) for r in results].count(("error",)) == 2
    assert {"error": "not an image"} in results
    assert "secret" not in answer.text
    assert [image for image, _ in service.embedded] == [bytes([i]) for i in range(4)]
    good = next(r for r in results if "masks" in r)
    assert (len(good["masks"]), good["model_used"]) == (3, "fast")


async def test_a_batch_that_is_wrong_as_a_whole(client):
    assert (await client.post("/segment_batch", files={"x": ("x", b"1")})).status_code == 400
    many = [("files", ("x", b"1"))] * 5
    assert (await client.post("/segment_batch", files=many)).status_code == 400
    one = {"files": ("x", b"1")}
    answer = await client.post("/segment_batch", files=one, data={"model_type": "huge"})
    assert answer.status_code == 400


async def test_health(client):
    told = ArticleHealth.model_validate_json((await client.get("/health")).content)
    assert told.version == "9.8.7"
