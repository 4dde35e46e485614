"""Every way to say a request reaches the service as the same typed request."""

from __future__ import annotations

import asyncio
import base64
import json
import tempfile
from typing import Any

import httpx
import numpy as np
import pytest

from serve_app.capabilities import Everything, SegmentRequest, TextQuery
from serve_app.client import HttpService
from serve_app.core.limits import Limits
from serve_app.core.types import Prompt, ProposalSource
from serve_app.http.app import create_app

from .schema import documented

FILE = b"\xff\xd8 not really a photo"
BASE64 = base64.b64encode(FILE).decode()


async def form(client: httpx.AsyncClient, **fields: Any) -> httpx.Response:
    return await client.post("/v1/segment", files={"file": ("x.jpg", FILE)}, data=fields)


async def test_form_with_a_text(client, service):
    answer = await form(client, text="dog")
    assert answer.status_code == 200, answer.text
    assert service.requests[0].task == TextQuery(text=("dog",))
    assert service.requests[0].image == FILE


async def test_form_with_a_box(client, service):
    answer = await form(client, box="[10,20,30,23]", multimask_output="false", variant="accurate")
    assert answer.status_code == 200, answer.text
    request = service.requests[0]
    assert request.task.prompts[0].box.tolist() == [10, 20, 30, 23]
    assert not request.task.prompts[0].multimask_output
    assert request.variant == "accurate"


@pytest.mark.parametrize("text", ["[[5, 6]]", "[5, 6]"])
async def test_form_points_are_on_the_object_unless_labelled(client, service, text):
    assert (await form(client, point_coords=text)).status_code == 200
    assert service.requests[0].task.prompts[0].point_coords.tolist() == [[5, 6]]
    assert service.requests[0].task.prompts[0].point_labels.tolist() == [1]
    assert (await form(client, point_coords=text, point_labels="[0]")).status_code == 200
    assert service.requests[1].task.prompts[0].point_labels.tolist() == [0]
    assert (await form(client, point_coords=text, point_labels="0")).status_code == 200


async def test_form_with_several_texts(client, service):
    assert (await form(client, text=["dog", "cat"])).status_code == 200
    assert (await form(client, text='["dog", "cat"]')).status_code == 200
    assert [r.task.text for r in service.requests] == [("dog", "cat")] * 2


async def test_form_with_everything(client, service):
    assert (await form(client, everything="true")).status_code == 200
    assert (await form(client, everything='{"points_per_side": 8}')).status_code == 200
    assert [r.task for r in service.requests] == [Everything(), Everything(points_per_side=8)]


async def test_form_with_request_as_field_and_as_file(client, service):
    request = json.dumps({"prompts": [{"box": [1, 2, 3, 4]}, {"box": [2, 3, 4, 5]}]})
    assert (await form(client, request=request, format="png")).status_code == 200
    files = {"file": ("x.jpg", FILE), "request": ("r.json", request, "application/json")}
    assert (await client.post("/v1/segment", files=files)).status_code == 200
    assert [len(r.task.prompts) for r in service.requests] == [2, 2]


async def test_a_large_file_does_not_go_through_a_disk(client, service, monkeypatch):
    def refuse(self: object) -> None:
        raise OSError("no disk")

    monkeypatch.setattr(tempfile.SpooledTemporaryFile, "rollover", refuse)
    large = FILE + bytes(3 * 2**20)
    answer = await client.post("/v1/segment", files={"file": large}, data={"text": "dog"})
    assert answer.status_code == 200, answer.text
    assert service.requests[0].image == large


async def test_form_with_image_id_and_no_file(client, service):
    fields = {"image_id": (None, "32x24-abc"), "text": (None, "dog")}
    answer = await client.post("/v1/segment", files=fields)
    assert answer.status_code == 200, answer.text
    assert service.requests[0].image == "32x24-abc"


@pytest.mark.parametrize(
    "image",
    [BASE64, f"data:image/jpeg;base64,{BASE64}", base64.encodebytes(FILE).decode()],
    ids=["plain", "data-url", "with line breaks"],
)
async def test_json_with_base64(client, service, image):
    answer = await client.post("/v1/segment", json={"image": image, "text": ["dog"]})
    assert answer.status_code == 200, answer.text
    assert service.requests[0].image == FILE


async def test_json_prompts(client, service):
    answer = await client.post(
        "/v1/segment",
        json={
            "image_id": "a",
            "prompts": [
                {"point_coords": [[1, 2], [3.5, 4]], "point_labels": [1, 0]},
                {"box": [1, 2, 3, 4], "multimask_output": True},
            ],
            "multimask_output": False,
            "return_logits": True,
        },
    )
    assert answer.status_code == 200, answer.text
    request = service.requests[0]
    first, second = request.task.prompts
    np.testing.assert_array_equal(first.point_coords, np.float32([[1, 2], [3.5, 4]]))
    assert first.point_labels.tolist() == [1, 0]
    assert (first.multimask_output, second.multimask_output) == (False, True)
    assert request.return_logits
    assert [len(r["masks"]) for r in answer.json()["results"]] == [1, 3]


@pytest.mark.parametrize("dtype", ["<f2", "<f4", "list"])
async def test_mask_input_in_all_its_forms(client, service, dtype):
    logits = np.linspace(-8, 8, 256 * 256).astype(np.float16).reshape(256, 256)
    value: Any = logits.tolist()
    if dtype != "list":
        value = base64.b64encode(logits.astype(dtype).tobytes()).decode()
    body = {"image_id": "a", "prompts": [{"mask_input": value}]}
    answer = await client.post("/v1/segment", json=body)
    assert answer.status_code == 200, answer.text
    np.testing.assert_array_equal(service.requests[0].task.prompts[0].mask_input, logits)


async def test_logits_come_back_as_mask_input(client, service):
    body = {"image_id": "a", "box": [1, 2, 3, 4], "return_logits": True}
    answer = (await client.post("/v1/segment", json=body)).json()
    logits = answer["results"][0]["masks"][0]["low_res_logits"]
    body = {"image_id": "a", "mask_input": logits}
    assert (await client.post("/v1/segment", json=body)).status_code == 200
    assert (service.requests[1].task.prompts[0].mask_input == 1.5).all()


async def test_text_parameters(client, service):
    body = {
        "image_id": "a",
        "text": "dog",
        "text_threshold": 0.3,
        "max_masks": 2,
        "proposals": "detector",
    }
    assert (await client.post("/v1/segment", json=body)).status_code == 200
    assert service.requests[0].task == TextQuery(
        text=("dog",), text_threshold=0.3, max_masks=2, proposals=ProposalSource.DETECTOR
    )


async def test_everything_has_metas_parameters(client, service):
    parameters = {
        "points_per_side": 16,
        "points_per_batch": 32,
        "pred_iou_thresh": 0.5,
        "stability_score_thresh": 0.6,
        "stability_score_offset": 0.7,
        "box_nms_thresh": 0.4,
        "crop_n_layers": 1,
        "crop_nms_thresh": 0.3,
        "crop_overlap_ratio": 0.2,
        "crop_n_points_downscale_factor": 2,
        "min_mask_region_area": 10,
        "mode": "exact",
    }
    body = {"image_id": "a", "everything": {**parameters, "proposals": "contours"}}
    assert (await client.post("/v1/segment", json=body)).status_code == 200
    assert service.requests[0].task == Everything(**parameters, proposals=ProposalSource.CONTOURS)


async def test_everything_keeps_to_the_limits_by_itself(app, service):
    limits = Limits(max_points_per_side=12)
    small = create_app(service, limits, metrics=None, version="1")  # type: ignore[arg-type]
    transport = httpx.ASGITransport(small)
    async with httpx.AsyncClient(transport=transport, base_url="http://sam") as client:
        for everything in (True, {}):
            body = {"image_id": "a", "everything": everything}
            assert (await client.post("/v1/segment", json=body)).status_code == 200
    lowered = [r.within(limits).task for r in service.requests]
    assert [task.points_per_side for task in lowered] == [12, 12]


@pytest.mark.parametrize("form_fields", [True, False])
async def test_hints_and_deadline(client, service, form_fields):
    hints = {"max_latency_ms": 150, "min_quality": 0.75}
    headers = {"x-request-timeout-seconds": "2.5"}
    sent: dict[str, Any] = {"json": {"image_id": "a", "text": "dog", **hints}}
    if form_fields:
        sent = {
            "files": {"file": ("x.jpg", FILE)},
            "data": {"text": "dog", **{name: str(value) for name, value in hints.items()}},
        }
    answer = await client.post("/v1/segment", **sent, headers=headers)
    assert answer.status_code == 200, answer.text
    assert (await client.post("/v1/segment", **{**sent, "headers": {}})).status_code == 200
    with_header, without = service.requests
    assert (with_header.max_latency_ms, with_header.min_quality) == (150, 0.75)
    assert without.timeout_s is None
    assert 0 < with_header.timeout_s < 2.5, "what is left of it"


async def test_without_hints_there_are_none(client, service):
    assert (await form(client, text="dog")).status_code == 200
    body = {"image_id": "a", "text": "dog", "max_latency_ms": None, "min_quality": None}
    assert (await client.post("/v1/segment", json=body)).status_code == 200
    for request in service.requests:
        hints = (request.max_latency_ms, request.min_quality, request.timeout_s)
        assert hints == (None, None, None)


@pytest.mark.parametrize("text", ["", "soon", "0", "-1", "nan", "inf", "-inf", "1,5", "1 2"])
async def test_a_deadline_that_is_none_does_not_count(client, service, text):
    body = {"image_id": "a", "text": "dog"}
    headers = {"x-request-timeout-seconds": text}
    assert (await client.post("/v1/segment", json=body, headers=headers)).status_code == 200
    assert service.requests[0].timeout_s is None


async def test_a_batchs_deadline_and_hints_are_those_of_its_items(client, service):
    items = [{"image_id": "a", "text": "dog", "min_quality": 0.5}, {"image_id": "a", "text": "cat"}]
    headers = {"x-request-timeout-seconds": "7"}
    answer = await client.post("/v1/segment/batch", json={"items": items}, headers=headers)
    assert answer.status_code == 200, answer.text
    found = {r.task.text[0]: r.min_quality for r in service.requests}
    assert found == {"dog": 0.5, "cat": None}
    assert all(0 < r.timeout_s < 7 for r in service.requests)


async def test_a_batchs_later_items_have_what_is_left_of_its_deadline(client, service, limits):
    async def slow(request):
        await asyncio.sleep(0.05)

    service.hook = slow
    items = [{"image_id": "a", "text": str(i)} for i in range(limits.max_batch_images)]
    headers = {"x-request-timeout-seconds": "0.02"}
    limited = create_app(
        service, limits.model_copy(update={"batch_concurrency": 1}), metrics=None, version="1"
    )
    transport = httpx.ASGITransport(limited)
    async with httpx.AsyncClient(transport=transport, base_url="http://sam") as client:
        await client.post("/v1/segment/batch", json={"items": items}, headers=headers)
    first, *others = (request.timeout_s for request in service.requests)
    assert first > 0
    assert max(others) <= 1e-3, "passed"


async def test_every_route_with_work_obeys_the_deadline(client, service):
    headers = {"x-request-timeout-seconds": "7"}
    for path in ("/v1/embed", "/segment", "/segment_batch"):
        files = {"files" if "batch" in path else "file": ("x.jpg", FILE)}
        answer = await client.post(path, files=files, headers=headers)
        assert answer.status_code == 200, answer.text
    assert len(service.embed_timeouts) == 3
    assert len(service.requests) == 2
    for timeout_s in (*service.embed_timeouts, *(r.timeout_s for r in service.requests)):
        assert 0 < timeout_s < 7


async def test_embed(client, service):
    by_file = await client.post(
        "/v1/embed", files={"file": ("x", FILE)}, data={"variant": "accurate"}
    )
    by_json = await client.post("/v1/embed", json={"image": BASE64})
    assert service.embedded == [(FILE, "accurate"), (FILE, "auto")]
    for answer in (by_file, by_json):
        body = await documented(client, "EmbedResult", answer.json())
        assert (body["image_id"], body["width"], body["height"]) == ("32x24-abc", 32, 24)
        assert {"embed", "parse", "total"} == body["timings_ms"].keys()


async def test_the_projects_own_client(app, service):
    """`HttpService` and these routes agree on every task."""
    async with HttpService("http://sam", transport=httpx.ASGITransport(app)) as sam:
        tasks = [
            (Prompt(point_coords=np.array([[1, 2]]), point_labels=np.array([1])),),
            (Prompt(box=np.array([1, 2, 3, 4]), mask_input=np.ones((256, 256))),),
            TextQuery(text=("dog", "absent"), proposals=ProposalSource.GRID),
            Everything(points_per_side=4),
        ]
        for task in tasks:
            logits = not isinstance(task, Everything)
            request = SegmentRequest(image=FILE, task=task, return_logits=logits)
            result = await sam.segment(request)
            np.testing.assert_array_equal(result.results[0].masks[0].array, service.array)
        assert service.requests[2].task == tasks[2]
        assert service.requests[3].task == tasks[3]
        assert (await sam.embed(FILE, "auto")).image_id == "32x24-abc"
        assert await sam.ready()
        assert "variants" in await sam.models()
