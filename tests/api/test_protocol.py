"""Headers that lie, bodies in a million pieces, numbers beyond any bound."""

from __future__ import annotations

import asyncio
import gc
import gzip
import os
import tracemalloc
from typing import Any

import orjson
import pytest

from serve_app.capabilities import Prompts
from serve_app.core.errors import TooManyPrompts
from serve_app.core.limits import Limits
from serve_app.core.types import Prompt
from serve_app.http.app import create_app

from .asgi import Exchange, Message

REQUEST = {"image_id": "a", "prompts": [{"box": [1, 2, 3, 4]}]}
PIECES = int(os.environ.get("SAM_SERVE_BODY_PIECES", "10000"))
JSON = {"content-type": "application/json"}


@pytest.fixture
def app(service):
    # An hour for a body: a busy machine takes its time.
    limits = Limits(linger_seconds=0, max_body_seconds=3600, body_grace_seconds=3600)
    return create_app(service, limits, metrics=None, version="1")


def pieces(body: bytes, size: int) -> list[Message]:
    cut = [body[i : i + size] for i in range(0, len(body), size)]
    return [
        {"type": "http.request", "body": piece, "more_body": n < len(cut) - 1}
        for n, piece in enumerate(cut)
    ]


@pytest.mark.parametrize("told", [None, "7", "0", "abc", "-5", "1e3", "0x10", "٣"])
async def test_a_length_that_lies_or_is_none_changes_nothing(app, told):
    headers = JSON if told is None else {**JSON, "content-length": told}
    exchange = Exchange(headers=headers, incoming=pieces(orjson.dumps(REQUEST), 5))
    # ASGI's headers are bytes: what is not ASCII comes as UTF-8 here.
    assert (await exchange.run(app)).status == 200


async def test_a_body_that_grows_beyond_its_length_is_cut_at_the_bound(service):
    app = create_app(
        service, Limits(max_body_bytes=1000, linger_seconds=0), metrics=None, version="1"
    )
    exchange = Exchange(headers={**JSON, "content-length": "10"}, incoming=pieces(b"a" * 5000, 100))
    await exchange.run(app)
    assert (exchange.status, exchange.error["code"]) == (413, "payload_too_large")
    assert exchange.read == 11


async def test_a_body_that_is_shorter_than_its_length_ends_with_its_time(service):
    app = create_app(
        service, Limits(body_grace_seconds=0.01, linger_seconds=0), metrics=None, version="1"
    )
    body = pieces(orjson.dumps(REQUEST), 1000)
    body[-1]["more_body"] = True
    exchange = Exchange(headers={**JSON, "content-length": "100000"}, incoming=body)
    await asyncio.wait_for(exchange.run(app), 60)
    assert exchange.status == 408


async def test_a_client_that_leaves_within_its_body_is_not_answered(app, service):
    body = [*pieces(orjson.dumps(REQUEST), 5)[:-1], {"type": "http.disconnect"}]
    exchange = Exchange(headers=JSON, incoming=body)
    await exchange.run(app)
    assert (exchange.sent, service.requests) == ([], [])


PLACE = '{"image_id": "a", "prompts": [{"box": [%s, 1, 2, 3]}]}'


@pytest.mark.parametrize(
    "body",
    [
        "[" * 120 + "]" * 120,
        '{"a":' * 120 + "1" + "}" * 120,
        "[" * 1_000_000,
        *(PLACE % number for number in ("NaN", "Infinity", "-Infinity", "1e999", "-1e999", "1e39")),
        PLACE % ("9" * 100_000),
    ],
    ids=lambda body: body[:6] + str(len(body)),
)
async def test_deep_json_and_numbers_that_are_none(app, service, body):
    exchange = Exchange(headers=JSON, incoming=pieces(body.encode(), 65536))
    await exchange.run(app)
    assert exchange.status == 422
    assert exchange.error["code"] in ("invalid_request", "invalid_prompt")
    assert service.requests == []


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "br", "identity, gzip"])
async def test_a_packed_body_is_not_unpacked(app, service, encoding):
    body = gzip.compress(orjson.dumps(REQUEST))
    exchange = Exchange(headers={**JSON, "content-encoding": encoding}, incoming=pieces(body, 9999))
    await exchange.run(app)
    assert (exchange.status, exchange.read) == (422, 0)


def clicks(count: int) -> dict[str, Any]:
    return {"point_coords": [[1, 2]] * count, "point_labels": [1] * count}


@pytest.mark.parametrize(
    ("prompts", "status", "field"),
    [
        ([clicks(10_001)], 422, "prompts[0].point_coords"),
        ([clicks(250)] * 40 + [clicks(1)], 422, "prompts"),
        ([clicks(250)] * 40, 200, None),
        ([{"box": [1, 2, 3, 4]}] * 1025, 422, "prompts"),
    ],
    ids=["10001 of one prompt", "10001 of many", "10000", "1025 prompts"],
)
async def test_ten_thousand_and_one_points(app, service, prompts, status, field):
    body = orjson.dumps({"image_id": "a", "prompts": prompts})
    exchange = Exchange(headers=JSON, incoming=pieces(body, 65536))
    await exchange.run(app)
    assert exchange.status == status
    if status == 422:
        assert exchange.error["code"] == "too_many_prompts"
        assert exchange.error["field"] == field
    assert len(service.requests) == (status == 200)


def test_python_callers_have_the_same_bound():
    of_250 = Prompt(point_coords=[[1, 2]] * 250, point_labels=[1] * 250)
    Prompts(prompts=(of_250,) * 40).within(Limits())
    with pytest.raises(TooManyPrompts) as caught:
        Prompts(prompts=(of_250,) * 41).within(Limits())
    assert caught.value.field == "prompts"


@pytest.mark.parametrize(
    ("items", "status"),
    [
        ([{"prompts": [clicks(250)] * 20}] * 2, 200),
        ([{"prompts": [clicks(250)] * 20}] * 2 + [clicks(1)], 422),
        ([{"prompts": [{"box": [1, 2, 3, 4]}] * 1024}] * 4, 200),
        ([{"prompts": [{"box": [1, 2, 3, 4]}] * 1024}] * 4 + [{"text": "a"}], 422),
        ([{"prompts": [{"box": [1, 2, 3, 4]}] * 1024}] * 4 + [{"text": ["a", "b"]}], 422),
        ([{"prompts": [7, [], {"point_coords": 5}]}, 7, None, {"point_coords": {}}], 200),
    ],
    ids=["points", "a point more", "prompts", "a prompt more", "texts", "of no form"],
)
async def test_a_batch_is_counted_as_a_whole(app, service, items, status):
    given = [{"image_id": "a", **item} if isinstance(item, dict) else item for item in items]
    body = pieces(orjson.dumps({"items": given}), 65536)
    exchange = Exchange(path="/v1/segment/batch", headers=JSON, incoming=body)
    await asyncio.wait_for(exchange.run(app), 60)
    assert exchange.status == status
    if status == 422:
        assert exchange.error["code"] == "too_many_prompts"
        assert service.requests == []


def form(content: bytes) -> bytes:
    head = b'--x\r\nContent-Disposition: form-data; name="%b"\r\n\r\n'
    file = b'--x\r\nContent-Disposition: form-data; name="file"; filename="f"\r\n\r\n'
    return file + content + b"\r\n" + head % b"text" + b"dog\r\n--x--\r\n"


async def peak_of(app: Any, exchange: Exchange) -> int:
    """Most bytes in use, beside those before, while a request is answered."""
    gc.collect()
    tracemalloc.start()
    try:
        await exchange.run(app)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert exchange.status == 200
    return peak


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["json", "file"])
async def test_a_body_in_very_many_pieces_takes_no_more_memory(app, kind):
    """A list of pieces of two bytes would take twenty times the body."""
    multipart = {"content-type": "multipart/form-data; boundary=x"}
    headers = JSON if kind == "json" else multipart

    def holding(length: int) -> bytes:
        if kind == "json":
            return orjson.dumps({"image": "A" * length, "text": "dog"})
        return form(b"A" * length)

    body = holding(2 * PIECES)

    class Drip(Exchange):
        async def _receive(self) -> Message:
            start = 2 * self.read
            self.read += 1
            more = start + 2 < len(body)
            return {"type": "http.request", "body": body[start : start + 2], "more_body": more}

    # The first request builds what the next ones use.
    await Exchange(headers=headers, incoming=pieces(holding(4), 99)).run(app)
    at_once = await peak_of(app, Exchange(headers=headers, incoming=pieces(body, len(body))))
    dripped = Drip(headers=headers)
    assert await peak_of(app, dripped) < at_once + 4 * len(body)
    assert dripped.read > PIECES
