"""Each format says the same mask, and answers keep to their documented models."""

from __future__ import annotations

import base64
import io
import json
from dataclasses import replace
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco

from serve_app.capabilities import Prompt, SegmentRequest
from serve_app.core.types import BoolArray, PromptResult, UnknownText, adapter
from serve_app.http import routes
from serve_app.http.formats import is_quick

from ..fakes.masks import rectangle_mask
from ..fakes.service import FakeService
from .schema import documented


async def ask(client: Any, **members: Any) -> Any:
    answer = await client.post("/v1/segment", json={"image_id": "a", **members})
    assert answer.status_code == 200, answer.text
    return answer


def filled(polygons: list[list[list[list[float]]]], shape: tuple[int, int]) -> BoolArray:
    """Polygons with holes drawn back, by the centres of pixels (even-odd)."""
    out = np.zeros(shape, np.bool_)
    for polygon in polygons:
        rings = [np.asarray(ring, np.float32) for ring in polygon]
        for y, x in np.ndindex(shape):
            centre = (x + 0.5, y + 0.5)
            inside = [cv2.pointPolygonTest(ring, centre, False) > 0 for ring in rings]
            out[y, x] |= inside[0] and not any(inside[1:])
    return out


async def test_rle_is_the_default_and_is_cocos(client, service):
    answer = await ask(client, box=[1, 2, 3, 4])
    assert answer.headers["content-type"] == "application/json"
    body = await documented(client, "SegmentResult", answer.json())
    assert [body[name] for name in ("width", "height", "variant", "model")] == [
        *(32, 24, "fast", "vit_t")
    ]
    assert (body["cache"], body["reason"]) == ("miss", "the default")
    assert {"embed", "parse", "format", "total"} == body["timings_ms"].keys()
    mask = answer.json()["results"][0]["masks"][0]
    np.testing.assert_array_equal(coco.decode(mask["segmentation"]), service.array)
    assert (mask["score"], mask["stability_score"]) == (0.9, 0.96)
    assert mask["bbox"] == [3, 2, 21, 16]
    assert mask["area"] == service.array.sum()
    assert "predicted_iou" not in mask


async def test_polygon_keeps_holes_and_parts(client, service):
    answer = await ask(client, box=[1, 2, 3, 4], format="polygon")
    await documented(client, "SegmentResult", answer.json())
    polygons = answer.json()["results"][0]["masks"][0]["segmentation"]
    assert sorted(len(polygon) for polygon in polygons) == [1, 2]
    np.testing.assert_array_equal(filled(polygons, service.array.shape), service.array)


async def test_png(client, service):
    answer = await ask(client, box=[1, 2, 3, 4], format="png")
    await documented(client, "SegmentResult", answer.json())
    png = base64.b64decode(answer.json()["results"][0]["masks"][0]["segmentation"])
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(png))), service.array * 255)


async def test_npz_is_a_file(client, service):
    answer = await ask(client, text=["dog", "cat"], format="npz", return_logits=True)
    assert answer.headers["content-type"] == "application/x-npz"
    assert "masks.npz" in answer.headers["content-disposition"]
    with np.load(io.BytesIO(answer.content), allow_pickle=False) as archive:
        np.testing.assert_array_equal(archive["masks"], [service.array, service.array])
        assert archive["result_index"].tolist() == [0, 1]
        assert archive["low_res_logits"].shape == (2, 256, 256)
        np.testing.assert_allclose(archive["scores"], [0.9, 0.9])
        told = json.loads(str(archive["answer"]))
    assert told["image_id"] == "32x24-abc"
    assert [r["text"] for r in told["results"]] == ["dog", "cat"]


@pytest.mark.parametrize("fmt", ["rle", "polygon", "png", "geojson", "npz"])
async def test_an_unknown_text_is_null_in_every_format(client, fmt):
    answer = await ask(client, text=["no dog", "dog", "absent"], format=fmt)
    if fmt == "npz":
        with np.load(io.BytesIO(answer.content), allow_pickle=False) as archive:
            told = json.loads(str(archive["answer"]))
    else:
        await documented(
            client, "FeatureCollection" if fmt == "geojson" else "SegmentResult", answer.json()
        )
        told = answer.json()
    unknown, found, absent = told["results"]
    why = {"reason": "negation", "message": "negation is not understood"}
    assert unknown == {"text": "no dog", "present": None, "unknown": why} | (
        {} if fmt in ("geojson", "npz") else {"masks": []}
    )
    assert (found["present"], absent["present"]) == (True, False)
    assert "unknown" not in found | absent


async def test_an_unknown_text_comes_back_whole(client):
    answer = await ask(client, text=["no dog"])
    (found,) = (adapter(PromptResult).validate_python(r) for r in answer.json()["results"])
    assert found.present is None
    assert found.unknown == UnknownText(reason="negation", message="negation is not understood")


async def test_geojson(client, service):
    answer = await ask(client, text=["dog", "absent"], format="geojson")
    assert answer.headers["content-type"] == "application/geo+json"
    await documented(client, "FeatureCollection", answer.json())
    told = answer.json()
    assert (told["type"], len(told["features"])) == ("FeatureCollection", 1)
    assert [r["present"] for r in told["results"]] == [True, False]
    feature = told["features"][0]
    assert feature["geometry"]["type"] == "MultiPolygon"
    rings = [ring for part in feature["geometry"]["coordinates"] for ring in part]
    assert all(ring[0] == ring[-1] for ring in rings)
    drawn = filled(feature["geometry"]["coordinates"], service.array.shape)
    np.testing.assert_array_equal(drawn, service.array)
    properties = feature["properties"]
    assert (properties["text"], properties["result"], properties["mask"]) == ("dog", 0, 0)
    assert properties["score"] == 0.9


@pytest.mark.parametrize("fmt", ["rle", "polygon", "png", "npz", "geojson"])
async def test_an_empty_mask_has_every_format(client, service, fmt):
    service.array = np.zeros_like(service.array)
    answer = await ask(client, box=[1, 2, 3, 4], format=fmt)
    if fmt == "geojson":
        assert answer.json()["features"][0]["geometry"] is None
    if fmt == "polygon":
        assert answer.json()["results"][0]["masks"][0]["segmentation"] == []


async def test_one_part_is_a_polygon_in_geojson(client, service):
    service.array[:14] = False
    answer = await ask(client, box=[1, 2, 3, 4], format="geojson")
    assert answer.json()["features"][0]["geometry"]["type"] == "Polygon"


async def test_everything_has_metas_record_keys(client):
    mask = (await ask(client, everything=True)).json()["results"][0]["masks"][0]
    metas = {
        *("segmentation", "area", "bbox", "predicted_iou", "point_coords"),
        *("stability_score", "crop_box"),
    }
    assert metas <= mask.keys()
    assert mask["predicted_iou"] == mask["score"]
    assert mask["point_coords"] == [[4.0, 5.0]]
    assert mask["crop_box"] == [0, 0, 32, 24]


async def test_a_text_that_is_absent_is_an_answer(client):
    answer = await ask(client, text=["dog", "absent"])
    told = answer.json()
    await documented(client, "SegmentResult", answer.json())
    assert (told["text_engine"], told["threshold"]) == ("labels", 0.5)
    found, absent = told["results"]
    assert (found["present"], found["text"], found["masks"][0]["text_score"]) == (True, "dog", 0.8)
    assert absent == {"text": "absent", "present": False, "best_score": 0.25, "masks": []}


@pytest.mark.parametrize("fmt", ["rle", "npz", "geojson"])
async def test_nan_of_a_model_never_appears(client, service, fmt):
    service.score = float("nan")
    answer = await client.post("/v1/segment", json={"image_id": "a", "text": "x", "format": fmt})
    assert answer.status_code == 500
    assert answer.json()["error"]["code"] == "internal_error"
    assert "NaN" not in answer.text


@pytest.mark.parametrize("fmt", ["rle", "geojson", "npz"])
async def test_an_answer_tells_what_the_router_did(client, service, fmt):
    service.more = {"expected_ms": 12.34, "degraded": True, "escalated": 1}
    service.answered_by = "accurate"
    answer = await ask(client, box=[1, 2, 3, 4], format=fmt)
    if fmt == "npz":
        with np.load(io.BytesIO(answer.content), allow_pickle=False) as archive:
            told = json.loads(str(archive["answer"]))
    else:
        model = "FeatureCollection" if fmt == "geojson" else "SegmentResult"
        told = await documented(client, model, answer.json())
    assert (told["expected_ms"], told["degraded"], told["escalated"]) == (12.3, True, 1)
    assert told["results"][0]["variant"] == "accurate"


async def test_what_has_nothing_to_say_is_left_out(client):
    told = (await ask(client, box=[1, 2, 3, 4])).json()
    assert not {"expected_ms", "degraded", "escalated"} & told.keys()
    assert "variant" not in told["results"][0]


async def test_many_small_masks_take_time_too(service: FakeService):
    request = SegmentRequest(image="a", task=Prompt(box=[1, 2, 3, 4]))
    result = await service.segment(request)
    one = PromptResult(masks=(rectangle_mask((1, 2, 3, 4)),))
    assert is_quick(replace(result, results=(one,) * 128), "rle")
    assert not is_quick(replace(result, results=(one,) * 129), "rle")


@pytest.mark.parametrize(
    ("members", "threads"),
    [({}, 0), ({"format": "polygon"}, 1), ({"return_logits": True}, 1), ({"format": "npz"}, 1)],
    ids=["run lengths", "polygons", "logits", "npz"],
)
async def test_only_what_takes_time_is_formatted_in_a_thread(
    client, monkeypatch, members: dict[str, Any], threads: int
):
    calls: list[object] = []
    original = routes.asyncio.to_thread

    async def counted(function: Any, *args: Any) -> Any:
        calls.append(function)
        return await original(function, *args)

    monkeypatch.setattr(routes.asyncio, "to_thread", counted)
    await ask(client, box=[1, 2, 3, 4], **members)
    assert len(calls) == threads
