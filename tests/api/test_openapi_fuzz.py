"""Whatever the OpenAPI document allows, and what it forbids, has one of the declared answers.

Schemathesis makes requests from the document, valid and broken ones; a part of them gets images
that are some, so that not all end at the first check.  ``SAM_SERVE_FUZZ_CASES`` sets how many
there are of each operation.
"""

from __future__ import annotations

import asyncio
import base64
import io
import json
import os
import re
import statistics
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import httpx
import numpy as np
import pytest
import requests
import schemathesis
from fastapi import FastAPI
from hypothesis import HealthCheck, given, reject, seed, settings
from hypothesis import strategies as st
from PIL import Image
from schemathesis import Case, GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)
from schemathesis.transport.serialization import Binary

from serve_app.connectors.article import article_router
from serve_app.core.limits import Limits
from serve_app.http.app import create_app

from ..clocks import repeat_if_slow
from ..fakes.flow import FakeGraph
from ..fakes.ports import FakeScorer
from ..fakes.service import FakeService

pytestmark = pytest.mark.slow

MOST_WORK = 300
"""A ratio, since processors differ, and work takes longer where others use one beside."""
CASES = int(os.environ.get("SAM_SERVE_FUZZ_CASES", "100"))
LIMITS = Limits(max_image_pixels=4096, max_image_side=200, max_points_per_side=16)
TELLTALE = re.compile(
    r"Traceback|File \"|site-packages|0x[0-9a-f]{6,}|/(usr|home|tmp|work|root|opt|var|etc)\b"
    r"|\b\d{1,3}(\.\d{1,3}){3}\b|serve_app|object at"
)
CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
]


def _image(kind: str, size: tuple[int, int] = (48, 32), mode: str = "RGB") -> bytes:
    buffer = io.BytesIO()
    noise = np.random.default_rng(7).integers(0, 256, (size[1], size[0], 3), np.uint8)
    Image.fromarray(noise).convert(mode).save(buffer, kind)
    return buffer.getvalue()


IMAGES = [
    _image("PNG"),
    _image("JPEG"),
    _image("GIF", mode="P"),
    _image("PNG", (1, 1), "L"),
    _image("BMP", (199, 3)),
    _image("PNG", (201, 3)),
    _image("PNG", (100, 90)),
    _image("JPEG")[:200],
    _image("PNG")[:60] + b"\0" * 60,
    b"GIF89a",
    b"",
]
files = st.sampled_from(IMAGES) | st.binary(max_size=64)


HERE = base64.b64encode(IMAGES[0]).decode()
BOX, POINT = [2, 3, 20, 25], [[5, 6]]
TASKS: list[dict[str, Any]] = [
    {"prompts": [{"box": BOX}, {"point_coords": POINT, "point_labels": [1]}]},
    {"box": BOX, "multimask_output": False},
    {"point_coords": [*POINT, [9, 9]], "point_labels": [1, 0]},
    {"prompts": [{"mask_input": base64.b64encode(bytes(2 * 65536)).decode(), "box": BOX}]},
    {"text": ["dog", "cat"], "max_masks": 3},
    {"text": "dog", "proposals": "grid", "points_per_side": 4},
    {"everything": True},
    {"everything": {"points_per_side": 4, "crop_n_layers": 1, "proposals": "detector"}},
]
bodies = st.builds(
    lambda task, image, form, logits: {**task, "image": image, "format": form, **logits},
    st.sampled_from(TASKS),
    st.sampled_from([HERE] * 4 + [base64.b64encode(image).decode() for image in IMAGES]),
    st.sampled_from(["rle", "polygon", "png", "npz", "geojson"]),
    st.sampled_from([{}, {}, {"return_logits": True}]),
)
"""Requests that the flow answers, most of them."""


def _form_text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


@st.composite
def cases(draw: st.DrawFn, operation: Any) -> Case:
    """A request of the document's making; of every other, most of the body is one that makes sense.

    Otherwise nearly all would end at the first unknown field.
    """
    modes = (
        operation.as_strategy(mode) for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE)
    )
    try:
        case: Case = draw(st.one_of(*modes))
    except ValueError:
        # Schemathesis 4.32 cannot hold some of its own broken forms against their schema.
        reject()
    made = case.body
    if operation.method != "post" or not isinstance(made, dict) or draw(st.booleans()):
        return case
    good = draw(bodies)
    kept = {name: made[name] for name in made if draw(st.integers(0, 9)) == 0}
    path = operation.path
    if case.media_type == "multipart/form-data":
        image = Binary(base64.b64decode(good.pop("image")))
        if path.startswith("/v1"):
            fields = {name: _form_text(value) for name, value in good.items()}
            fields = {"variant": "auto"} if path == "/v1/embed" else fields
        else:
            fields = {name: _form_text(good[name]) for name in good if name in ("box",)}
        file = {"files": [image, image]} if "batch" in path else {"file": image}
        case.body = {**fields, **file, **kept}
    elif path == "/v1/segment/batch":
        case.body = {"items": draw(st.lists(bodies, min_size=1, max_size=3)), **kept}
    elif path == "/v1/embed":
        case.body = {"image": good["image"], **kept}
    else:
        case.body = {**good, **kept}
    return case


@pytest.fixture(scope="module", autouse=True)
def _files() -> None:
    """Files of forms are images, as often as not."""
    schemathesis.openapi.format("binary", files)


@dataclass
class Interface:
    """An app, its document's operations, and the loop that it runs in."""

    app: FastAPI
    runner: asyncio.Runner

    def __post_init__(self) -> None:
        self.document = schemathesis.openapi.from_dict(self.app.openapi())
        plain = httpx.Request("POST", "http://sam/v1/segment", json={**TASKS[1], "image": HERE})
        rounds = [self.exchange(plain) for _ in range(10)]
        assert {answer.status_code for answer, _ in rounds} == {200}
        self.plain_s = statistics.median(seconds for _, seconds in rounds)

    def send(self, case: Case) -> httpx.Response:
        """The answer; it may cost the processor no more than many plain requests do."""
        made = requests.Request(**case.as_transport_kwargs(base_url="http://sam")).prepare()
        given = httpx.Request(made.method, made.url, headers=made.headers, content=made.body or b"")
        answer, seconds = repeat_if_slow(lambda: self.exchange(given), MOST_WORK * self.plain_s)
        assert seconds < MOST_WORK * self.plain_s
        return answer

    def exchange(self, given: httpx.Request) -> tuple[httpx.Response, float]:
        """The answer, and the processor's seconds."""

        async def exchange() -> tuple[httpx.Response, float]:
            transport = httpx.ASGITransport(self.app)
            async with httpx.AsyncClient(transport=transport) as client:
                began = time.process_time()
                answer = await client.send(given)
                return answer, time.process_time() - began

        return self.runner.run(exchange())


async def _no_metrics() -> bytes:
    return b""


@pytest.fixture(scope="module", params=["interface alone", "with the flow"])
def interface(request: pytest.FixtureRequest) -> Iterator[Interface]:
    flow = request.param == "with the flow"
    service: Any = FakeGraph(FakeScorer(), LIMITS, 60.0).flow if flow else FakeService()
    app = create_app(service, LIMITS, metrics=_no_metrics, version="1", connectors=[article_router])
    with asyncio.Runner() as runner:
        yield Interface(app, runner)


def check(case: Case, answer: httpx.Response) -> None:
    case.validate_response(answer, checks=CHECKS)
    assert answer.headers["x-request-id"]
    if answer.status_code >= 400:
        assert len(answer.content) < 2048
        assert not TELLTALE.search(answer.text), answer.text


def _operations() -> list[str]:
    app = create_app(
        FakeService(), LIMITS, metrics=_no_metrics, version="1", connectors=[article_router]
    )
    return [
        f"{method.upper()} {path}"
        for path, operations in app.openapi()["paths"].items()
        for method in operations
    ]


@pytest.mark.parametrize("label", _operations())
def test_every_answer_is_a_declared_one(interface: Interface, label: str) -> None:
    method, path = label.split()
    operation = interface.document[path][method]
    answers: Counter[int] = Counter()

    @seed(20261)
    @settings(
        max_examples=CASES,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(case=cases(operation))
    def fuzz(case: Case) -> None:
        answer = interface.send(case)
        answers[answer.status_code] += 1
        check(case, answer)

    fuzz()
    # Some are answered and some refused: or the cases were all of one kind.
    assert answers[200] > 0
    if method == "POST":
        assert answers[200] > CASES / 20, answers
        assert answers.total() - answers[200] > CASES / 20, answers
