"""A body has its time; who drips bytes is heard no longer than that."""

from __future__ import annotations

import asyncio

import pytest

from serve_app.core.errors import BodyTimeout
from serve_app.core.limits import Limits
from serve_app.http.app import create_app
from serve_app.http.middleware import BodyLimitMiddleware
from serve_app.http.request_info import RequestInfo

from .asgi import Clock, Exchange

LIMITS = Limits(
    max_body_bytes=2**20,
    max_body_seconds=60,
    body_grace_seconds=10,
    min_body_bytes_per_second=1000,
)


async def read_all(scope, receive, send):
    """Reads the body, and then waits for the client to leave."""
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            break
        scope["state"]["arrived"] = scope["state"].get("arrived", 0) + len(message["body"])
    await send({"type": "http.response.start", "status": 200, "headers": []})


async def drip(pieces: int, size: int, seconds: float, limits: Limits = LIMITS) -> Exchange:
    """Send a body in pieces of so many bytes, one each so many seconds; then go."""
    clock = Clock()

    def wait() -> None:
        clock.now += seconds

    incoming = [
        {"type": "http.request", "body": b"a" * size, "more_body": n < pieces - 1}
        for n in range(pieces)
    ]
    exchange = Exchange(
        incoming=[*incoming, {"type": "http.disconnect"}], on_receive=wait, info=RequestInfo()
    )
    await exchange.run(BodyLimitMiddleware(read_all, limits=limits, clock=clock))
    return exchange


async def test_a_busy_process_is_not_the_clients_fault() -> None:
    """The time before the first read does not count."""
    clock = Clock()
    incoming = [{"type": "http.request", "body": b"a"}, {"type": "http.disconnect"}]
    exchange = Exchange(incoming=incoming, info=RequestInfo())

    async def late(scope, receive, send):
        clock.now += LIMITS.max_body_seconds + 1
        await read_all(scope, receive, send)

    await exchange.run(BodyLimitMiddleware(late, limits=LIMITS, clock=clock))
    assert exchange.status == 200


@pytest.mark.parametrize(
    ("pieces", "size", "seconds"),
    [
        (1, 10, 9),  # a small body within the grace
        (9, 1, 1),  # slow, but soon over
        (50, 1000, 1),  # long, at the least rate
        (5, 100_000, 11),  # seldom, but enough
    ],
)
async def test_what_comes_in_time_is_read(pieces, size, seconds):
    assert (await drip(pieces, size, seconds)).status == 200


@pytest.mark.parametrize(
    ("pieces", "size", "seconds", "read"),
    [
        (1000, 1, 1, 11),  # a byte a second: heard for the grace
        (1000, 500, 1, 20),  # half the rate: 10 s of grace, and 10 s that 10,000 bytes take
        (70, 10_000, 1, 60),  # fast enough, but longer than any body may take
    ],
)
async def test_what_does_not_is_given_up(pieces, size, seconds, read, figures):
    with pytest.raises(BodyTimeout) as caught:
        await drip(pieces, size, seconds)
    assert f"only {read * size} bytes" in caught.value.message
    assert figures.refused("body_time") == 1


async def test_a_body_that_never_comes_ends_the_wait(figures):
    limits = Limits(body_grace_seconds=0.01)
    with pytest.raises(BodyTimeout):
        await asyncio.wait_for(
            Exchange(incoming=[]).run(BodyLimitMiddleware(read_all, limits=limits)), 60
        )
    assert figures.refused("body_time") == 1


async def test_the_answer_is_a_408_that_ends_the_connection(service, figures):
    limits = Limits(body_grace_seconds=0.01, linger_seconds=0)
    app = create_app(service, limits, metrics=None, version="1")
    for content_type in ("application/json", "multipart/form-data; boundary=x"):
        exchange = Exchange(
            headers={"content-type": content_type, "content-length": "1000"},
            incoming=[{"type": "http.request", "body": b"--x\r\n", "more_body": True}],
        )
        await asyncio.wait_for(exchange.run(app), 60)
        assert exchange.status == 408
        assert exchange.error["code"] == "body_timeout"
        assert exchange.answered["connection"] == "close"
    assert figures.counts["sam_requests_total", "/v1/segment", "408", "body_timeout"] == 2
    assert service.requests == []


async def test_work_on_a_body_that_is_there_may_take_its_time():
    """The time is the body's: a client that waits for the answer is not hurried."""
    clock = Clock()
    exchange = Exchange(
        incoming=[
            {"type": "http.request", "body": b"{}", "more_body": False},
            {"type": "http.disconnect"},
        ]
    )

    async def works(scope, receive, send):
        await receive()
        clock.now += 10_000
        assert (await receive())["type"] == "http.disconnect"

    await exchange.run(BodyLimitMiddleware(works, limits=LIMITS, clock=clock))
    assert exchange.read == 2
