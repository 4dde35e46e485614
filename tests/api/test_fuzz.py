"""Whatever the body holds, the answer is a 2xx or a typed 4xx that echoes nothing."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import httpx
import orjson
import pytest
from fastapi import FastAPI
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

pytestmark = pytest.mark.slow

MARK = "qqq-echo-qqq"

scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=5)
    | st.just(MARK)
    | st.sampled_from(["rle", "geojson", "auto", "fast", "a", "grid", "YQ=="])
)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=8,
)
numbers = st.integers(-5, 40) | st.floats(-5, 40)
prompts = st.fixed_dictionaries(
    {},
    optional={
        "point_coords": st.lists(st.lists(numbers, min_size=2, max_size=2), max_size=3) | values,
        "point_labels": st.lists(st.integers(0, 1), max_size=3) | values,
        "box": st.lists(numbers, min_size=4, max_size=4) | values,
        "mask_input": values,
        "multimask_output": values,
    },
)
everything = st.booleans() | st.dictionaries(
    st.sampled_from(["points_per_side", "crop_n_layers", "pred_iou_thresh", "proposals", "x"]),
    values,
)
bodies = st.fixed_dictionaries(
    {"image_id": st.just("a") | values},
    optional={
        "image": values,
        "prompts": st.lists(prompts, max_size=3) | values,
        "text": st.text(max_size=9) | values,
        "text_threshold": numbers | values,
        "everything": everything | values,
        "box": values,
        "variant": values,
        "format": values,
        "return_logits": values,
        "max_masks": values,
        "max_latency_ms": numbers | values,
        "min_quality": numbers | values,
        MARK: values,
    },
)


@pytest.fixture(scope="module")
def runner() -> Any:
    with asyncio.Runner() as runner:
        yield runner


@pytest.fixture
def post(app: FastAPI, runner: asyncio.Runner) -> Callable[[str, Any], httpx.Response]:
    async def send(path: str, body: Any) -> httpx.Response:
        async with httpx.AsyncClient(
            transport=httpx.ASGITransport(app), base_url="http://sam"
        ) as client:
            headers = {"content-type": "application/json"}
            content = body if isinstance(body, bytes) else orjson.dumps(body)
            return await client.post(path, content=content, headers=headers)

    return lambda path, body: runner.run(send(path, body))


def check(answer: httpx.Response) -> None:
    assert answer.status_code < 500, answer.text
    assert answer.headers["x-request-id"]
    if answer.status_code >= 400:
        assert MARK not in answer.text
        assert answer.json()["error"]["code"]
        assert len(answer.content) < 2048


often = settings(
    max_examples=150,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@often
@given(body=bodies | values)
def test_any_segment_request(post, body):
    check(post("/v1/segment", body))


@often
@given(items=st.lists(bodies, max_size=5) | values)
def test_any_batch(post, items):
    check(post("/v1/segment/batch", {"items": items}))


@often
@given(body=st.binary(max_size=40))
def test_any_bytes(post, body):
    check(post("/v1/segment", body))


@often
@given(text=st.text(max_size=12) | values.map(lambda v: orjson.dumps(v).decode()))
@pytest.mark.parametrize(
    "field", ["box", "point_coords", "everything", "request", "max_masks", "min_quality"]
)
def test_any_form_field(app, runner, field, text):
    async def send() -> httpx.Response:
        async with httpx.AsyncClient(
            transport=httpx.ASGITransport(app), base_url="http://sam"
        ) as client:
            return await client.post("/v1/segment", files={"file": ("x", b"1")}, data={field: text})

    check(runner.run(send()))
