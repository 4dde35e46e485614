"""A capability of one file (`tests.toy_capability`) has everything that the built-in ones have."""

from __future__ import annotations

import asyncio
import base64
import io
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from fastapi import FastAPI
from PIL import Image

from serve_app.capabilities import CAPABILITIES, SegmentRequest, TextQuery, load_capabilities
from serve_app.client import HttpService
from serve_app.core.capability import Capabilities, Capability
from serve_app.core.errors import DeadlineExceeded, InvalidRequest, TooManyPrompts
from serve_app.core.limits import Limits
from serve_app.core.request import Task
from serve_app.http.app import create_app

from .. import toy_capability
from ..fakes.flow import FakeGraph
from ..fakes.ports import FakeScorer
from ..toy_capability import Brightness, BrightnessResult
from .asgi import Exchange
from .schema import documented

LIMITS = Limits(max_points_per_side=8, linger_seconds=0)
PIXELS = np.zeros((4, 6, 3), np.uint8)
PIXELS[:, 1::2] = 200


def png() -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(PIXELS).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def capabilities() -> Capabilities:
    return load_capabilities([toy_capability.__name__])


@pytest.fixture
def app(capabilities: Capabilities) -> FastAPI:
    async def metrics() -> bytes:
        return b""

    flow = FakeGraph(FakeScorer(), LIMITS, 60.0, capabilities=capabilities).flow
    return create_app(flow, LIMITS, capabilities=capabilities, metrics=metrics, version="1")


@pytest.fixture
async def client(app: FastAPI) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://sam") as client:
        yield client


def test_it_has_at_most_forty_lines() -> None:
    assert len(Path(toy_capability.__file__).read_text("utf-8").splitlines()) <= 40


@pytest.mark.parametrize(
    ("fields", "levels"),
    [
        ({"brightness": "true"}, [0, 200]),
        ({"brightness": '{"columns": 1}'}, [100]),
        ({"request": '{"brightness": {"columns": 1}}'}, [100]),
    ],
)
async def test_by_form(client, fields: dict[str, str], levels: list[float]) -> None:
    response = await client.post("/v1/segment", files={"file": ("x", png())}, data=fields)
    assert response.status_code == 200, response.text
    assert response.json()["results"] == [{"levels": levels}]


async def test_by_json_and_in_the_document(client) -> None:
    known = (await client.post("/v1/embed", files={"file": ("x", png())})).json()["image_id"]
    body = {"image_id": known, "brightness": {"columns": 2.0}}
    response = (await client.post("/v1/segment", json=body)).json()
    await documented(client, "SegmentResult", response)
    await documented(client, "SegmentBody", body)
    assert response["results"] == [{"levels": [0, 200]}]
    assert "measure" in response["timings_ms"]
    form = (await client.get("/openapi.json")).json()["paths"]["/v1/segment"]["post"]
    properties = form["requestBody"]["content"]["multipart/form-data"]["schema"]["properties"]
    assert "brightness" in properties


async def test_in_a_batch(client) -> None:
    files = [("files", ("x", png())), ("files", ("y", b"no image"))]
    response = await client.post("/v1/segment/batch", files=files, data={"brightness": "true"})
    lines = {line["index"]: line for line in map(json.loads, response.text.splitlines())}
    assert lines[0]["result"]["results"] == [{"levels": [0, 200]}]
    assert lines[1]["error"]["code"] == "invalid_image"


async def test_with_the_client(app, capabilities) -> None:
    transport = httpx.ASGITransport(app)
    async with HttpService("http://sam", transport=transport, capabilities=capabilities) as sam:
        request = SegmentRequest(image=png(), task=Brightness(columns=1))
        assert (await sam.segment(request)).results == (BrightnessResult([100.0]),)
        with pytest.raises(TooManyPrompts):
            await sam.segment(SegmentRequest(image=png(), task=Brightness(columns=9)))
        slow = Brightness(wait_s=60)
        with pytest.raises(DeadlineExceeded):
            await sam.segment(SegmentRequest(image=png(), task=slow, timeout_s=0.01))


@pytest.mark.parametrize(
    ("fields", "code", "field"),
    [
        ({"columns": 0}, "invalid_request", "brightness.columns"),
        ({"columns": 9}, "too_many_prompts", "brightness.columns"),
        ({"columns": "2"}, "invalid_request", "brightness.columns"),
        ({"depth": 2}, "invalid_request", "brightness"),
    ],
)
async def test_its_limits_and_checks(client, fields: dict[str, Any], code: str, field: str) -> None:
    response = await client.post("/v1/segment", json={"image_id": "a", "brightness": fields})
    assert response.status_code == 422
    assert (response.json()["error"]["code"], response.json()["error"]["field"]) == (code, field)


async def test_a_default_above_a_limit_is_lowered_to_it() -> None:
    assert Brightness().within(Limits(max_points_per_side=1)).columns == 1


async def test_other_formats_are_for_masks(client) -> None:
    body = {"image_id": "a", "brightness": True, "format": "png"}
    error = (await client.post("/v1/segment", json=body)).json()["error"]
    assert (error["code"], error["field"]) == ("unknown_format", "format")


async def test_it_is_counted_and_audited(client, figures, our_log, caplog) -> None:
    caplog.set_level("INFO", "serve_app.audit")
    await client.post("/v1/segment", files={"file": ("x", png())}, data={"brightness": "true"})
    assert figures.counts["sam_requests_total", "/v1/segment", "200", ""] == 1
    assert ("sam_stage_duration_seconds", "measure") in figures.observed
    (line,) = [r for r in our_log() if r.name == "serve_app.audit"]
    assert (line.http_route, line.variant, line.prompts, line.images) == (
        *("/v1/segment", "fast"),
        *(1, 1),
    )


async def test_a_client_that_disconnects_cancels_it(app, monkeypatch) -> None:
    started, ended = asyncio.Event(), asyncio.Event()

    async def sleep(_: float) -> None:
        started.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    monkeypatch.setattr(toy_capability.asyncio, "sleep", sleep)
    body = json.dumps({"image": base64.b64encode(png()).decode(), "brightness": True})
    exchange = Exchange(
        headers={"content-type": "application/json"},
        incoming=[{"type": "http.request", "body": body.encode()}],
    )
    request = asyncio.create_task(exchange.run(app))
    await asyncio.wait_for(started.wait(), 60)
    request.cancel()
    await asyncio.wait_for(ended.wait(), 60)


def test_two_capabilities_cannot_share_a_member(monkeypatch: pytest.MonkeyPatch) -> None:
    # For this test alone: a dict of another test's request would be of two tasks.
    monkeypatch.setattr("serve_app.core.request._TASKS", [])

    class Other(Task):
        """Another one."""

        name = "other"
        flat = True
        text: str

    with pytest.raises(ValueError, match="other and text share the member text"):
        Capabilities((*CAPABILITIES.values(), Capability(task=Other, run=toy_capability.run)))
    with pytest.raises(ValueError, match="text and text share the member"):
        Capabilities((*CAPABILITIES.values(), Capability(task=TextQuery, run=toy_capability.run)))


def test_a_service_without_the_capability_says_so() -> None:
    with pytest.raises(InvalidRequest, match="no capability brightness"):
        load_capabilities([])[Brightness]
