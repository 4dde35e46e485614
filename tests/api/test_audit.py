"""Exactly one line for each request, whatever becomes of it, and nothing of what it holds."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from ray._common.formatters import JSONFormatter
from starlette.requests import ClientDisconnect

from serve_app.core.errors import Overloaded
from serve_app.core.limits import Limits
from serve_app.http.app import create_app
from serve_app.http.middleware import AuditLogMiddleware

from .asgi import Clock, Exchange, fine

FACTS = {
    *("request_id", "key", "client", "method", "http_route", "status", "error_code", "bytes_in"),
    *("bytes_out", "duration_ms", "variant", "prompts", "images"),
}
SECRET = "xyzzy-s3cret-marker"


@pytest.fixture
def lines(our_log, caplog: pytest.LogCaptureFixture) -> Callable[[], list[dict[str, Any]]]:
    """The audit lines so far."""
    caplog.set_level(logging.INFO, "serve_app.audit")

    def so_far() -> list[dict[str, Any]]:
        records = [r for r in our_log() if r.name == "serve_app.audit"]
        assert all(r.levelno == logging.INFO for r in records)
        return [{name: getattr(record, name) for name in FACTS} for record in records]

    return so_far


async def test_an_answered_request(client, lines, figures):
    body = {"image_id": SECRET, "text": ["dog", SECRET], "variant": "auto"}
    answer = await client.post("/v1/segment", json=body, headers={"x-request-id": "r1"})
    (line,) = lines()
    took = line.pop("duration_ms")
    assert isinstance(took, float)
    assert took >= 0
    assert line == {
        "request_id": "r1",
        "key": "-",
        "client": "127.0.0.1",
        "method": "POST",
        "http_route": "/v1/segment",
        "status": 200,
        "error_code": "",
        "bytes_in": int(answer.request.headers["content-length"]),
        "bytes_out": len(answer.content),
        "variant": "fast",
        "prompts": 2,
        "images": 1,
    }
    assert figures.counts["sam_requests_total", "/v1/segment", "200", ""] == 1
    assert figures.observed == [("sam_request_duration_seconds", "/v1/segment")]
    assert figures.gauges["sam_requests_in_flight"] == [1, 0]


async def test_what_each_route_tells(client, lines):
    item = {"image_id": "a", "prompts": [{"box": [1, 2, 3, 4]}] * 2}
    await client.post("/v1/segment/batch", json={"items": [item, {**item, "text": "no"}, 7]})
    await client.post("/v1/embed", json={"image_id": "a", "variant": "fast"})
    await client.post("/v1/segment", json={"image_id": "a", "everything": True})
    await client.post("/segment", files={"file": ("f", b"1")}, data={"box": "[1,2,3,4]"})
    await client.post("/segment_batch", files=[("files", ("f", b"1"))] * 2)
    await client.get("/v1/models")
    told = [(x["http_route"], x["images"], x["prompts"], x["variant"]) for x in lines()]
    assert told == [
        ("/v1/segment/batch", 3, 4, "-"),
        ("/v1/embed", 1, 0, "fast"),
        ("/v1/segment", 1, 1, "fast"),
        ("/segment", 1, 1, "fast"),
        ("/segment_batch", 2, 2, "-"),
        ("/v1/models", 0, 0, "-"),
    ]


@pytest.mark.parametrize("path", ["/healthz", "/readyz", "/health", "/metrics"])
async def test_what_is_polled_has_its_line_at_debug_and_is_counted(
    client, our_log, caplog, figures, path
):
    caplog.set_level(logging.INFO, "serve_app")
    await client.get(path)
    assert our_log() == []
    caplog.set_level(logging.DEBUG, "serve_app.audit")
    await client.get(path)
    (record,) = our_log()
    assert (record.levelno, record.http_route, record.status) == (logging.DEBUG, path, 200)
    assert figures.counts["sam_requests_total", path, "200", ""] == 2
    assert figures.observed == [("sam_request_duration_seconds", path)] * 2


async def test_refused_and_unknown_ones(client, lines, service, figures):
    service.failure = Overloaded("full")
    await client.post("/v1/segment", json={"image_id": "a", "text": "a", "variant": "slow"})
    await client.post("/v1/segment", content=b"x", headers={"content-length": "9" * 10})
    await client.get("/v1/segment")
    for path in (f"/{SECRET}", "/wp-login.php", "/v1/segment//"):
        await client.get(path)
    await client.post("/segment", files={"file": ("f", b"")})
    told = [(x["http_route"], x["status"], x["error_code"]) for x in lines()]
    assert told == [
        ("/v1/segment", 503, "overloaded"),
        ("/v1/segment", 413, "payload_too_large"),
        ("/v1/segment", 405, "method_not_allowed"),
        *[("unknown", 404, "not_found")] * 3,
        ("/segment", 400, "invalid_image"),
    ]
    assert lines()[0]["variant"] == "-"
    assert figures.counts["sam_requests_total", "unknown", "404", "not_found"] == 3
    assert figures.refused("body_size") == 1


async def test_a_fault_of_ours(client, lines, service, figures):
    service.failure = RuntimeError(SECRET)
    answer = await client.post("/v1/segment", json={"image_id": "a", "text": "a"})
    assert answer.status_code == 500
    (line,) = lines()
    assert (line["status"], line["error_code"]) == (500, "internal_error")
    assert figures.counts["sam_requests_total", "/v1/segment", "500", "internal_error"] == 1
    assert figures.gauges["sam_requests_in_flight"] == [1, 0]


async def left(scope: Any, receive: Any, send: Any) -> None:
    raise ClientDisconnect


async def half(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"half", "more_body": True})


async def breaks(scope: Any, receive: Any, send: Any) -> None:
    await half(scope, receive, send)
    raise RuntimeError


async def noticed(scope: Any, receive: Any, send: Any) -> None:
    await receive()
    await fine(scope, receive, send)


async def silent(scope: Any, receive: Any, send: Any) -> None:
    pass


@pytest.mark.parametrize(
    ("app", "status", "code"),
    [
        (left, 499, ""),
        (half, 499, ""),
        (silent, 499, ""),
        (noticed, 499, ""),
        (breaks, 500, "internal_error"),
        (fine, 200, ""),
    ],
    ids=lambda value: getattr(value, "__name__", value),
)
async def test_every_end_has_its_status(lines, app, status, code):
    exchange = Exchange(incoming=[{"type": "http.disconnect"}])
    try:
        await exchange.run(AuditLogMiddleware(app, templates=lambda: ["/v1/segment"]))
    except (RuntimeError, ClientDisconnect):
        assert app in (breaks, left)
    (line,) = lines()
    assert (line["status"], line["error_code"], line["client"]) == (status, code, "192.0.2.7")


async def test_a_cancelled_request_is_one_that_was_left(lines, figures):
    entered = asyncio.Event()

    async def forever(scope: Any, receive: Any, send: Any) -> None:
        entered.set()
        await asyncio.Event().wait()

    account = AuditLogMiddleware(forever, templates=list)
    task = asyncio.create_task(Exchange().run(account))
    await entered.wait()
    assert lines() == []
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert [line["status"] for line in lines()] == [499]
    assert figures.gauges["sam_requests_in_flight"] == [1, 0]


async def test_routes_are_told_by_their_templates(lines, figures):
    account = AuditLogMiddleware(fine, templates=lambda: ["/a", "/images/{name}/masks"])
    for path in ("/a", "/images/1/masks", "/images/2/masks", "/images/2", "/a/"):
        await Exchange(path=path).run(account)
    assert [line["http_route"] for line in lines()] == [
        "/a",
        *["/images/{name}/masks"] * 2,
        *["unknown"] * 2,
    ]


async def test_the_duration_is_the_whole_requests(lines):
    clock = Clock()

    async def slow(scope: Any, receive: Any, send: Any) -> None:
        clock.now += 1.5
        await fine(scope, receive, send)

    await Exchange().run(AuditLogMiddleware(slow, templates=list, clock=clock))
    assert lines()[0]["duration_ms"] == 1500.0


@pytest.mark.parametrize(
    ("client", "method"),
    [(("1.2.3.4 status=200\n", 1), "GET"), (None, "GET"), (("1.2.3.4", 1), "X status=1")],
)
async def test_what_a_caller_writes_makes_no_other_line(caplog, our_log, client, method):
    caplog.set_level(logging.INFO, "serve_app.audit")
    await Exchange(client=client, method=method).run(AuditLogMiddleware(fine, templates=list))
    (record,) = our_log()
    text = record.getMessage()
    assert "\n" not in text
    assert text.count("status=") == 1


async def test_nothing_of_a_request_is_in_the_log(service, caplog):
    app = create_app(service, Limits(), metrics=None, version="1")
    transport = httpx.ASGITransport(app)
    with caplog.at_level(logging.DEBUG, "serve_app"):
        async with httpx.AsyncClient(transport=transport, base_url="http://sam") as client:
            for body in (
                {"image_id": SECRET, "text": SECRET},
                {"image_id": SECRET, "text": SECRET, "variant": SECRET * 2},
                {SECRET: SECRET},
                {"image": SECRET, "text": [SECRET] * 99},
            ):
                await client.post(f"/v1/segment?{SECRET}=1", json=body)
            await client.get(f"/{SECRET}", headers={"x-request-id": SECRET + " "})
    records = [r for r in caplog.records if r.name == "serve_app.audit"]
    assert len(records) == 5
    for record in caplog.records:
        # As Ray's JSON and as its text.
        assert SECRET not in JSONFormatter().format(record)
    told = json.loads(JSONFormatter().format(records[0]))
    assert told.keys() >= FACTS
    assert told["message"].startswith("request_id=")
    assert "status=200" in told["message"]
