"""Early answers reach clients that are still sending: over real connections, with a real server."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from typing import Any

import pytest
import uvicorn
from starlette.types import ASGIApp, Receive, Scope, Send

from serve_app.core.limits import Limits
from serve_app.http.middleware import SlowClientMiddleware

from .asgi import Exchange

ANSWER = b"no"
BODY = bytes(4 * 2**20)


async def refusing(scope: Scope, receive: Receive, send: Send) -> None:
    """Refuses unread."""
    headers = [(b"content-length", b"2"), (b"connection", b"close")]
    await send({"type": "http.response.start", "status": 503, "headers": headers})
    await send({"type": "http.response.body", "body": ANSWER})


def lingering(seconds: float, most: int) -> SlowClientMiddleware:
    limits = Limits(linger_seconds=seconds, max_lingering_requests=most)
    return SlowClientMiddleware(refusing, limits=limits)


async def serving(app: ASGIApp) -> AsyncIterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        server = uvicorn.Server(uvicorn.Config(app, lifespan="off", log_level="error"))
        task = asyncio.create_task(server.serve([listening]))
        yield listening.getsockname()[1]
        server.should_exit = True
        await task


async def answer_to(port: int, sent: bytes, announced: int) -> bytes:
    """What a client gets that sends all it has before it reads, in small pieces."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(f"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: {announced}\r\n\r\n".encode())
    for start in range(0, len(sent), 2**16):
        writer.write(sent[start : start + 2**16])
        await writer.drain()
        await asyncio.sleep(0)
    try:
        return await reader.read()
    finally:
        writer.close()


async def test_the_answer_is_read_after_the_whole_body_was_sent() -> None:
    async for port in serving(lingering(5, 9)):
        for _ in range(5):
            answer = await answer_to(port, BODY, len(BODY))
            assert answer.startswith(b"HTTP/1.1 503")
            assert answer.endswith(ANSWER)


async def test_without_it_the_connection_is_reset() -> None:
    """Else the test above could not fail."""
    async for port in serving(refusing):
        with pytest.raises(OSError, match=r"reset|lost|Broken pipe"):
            await asyncio.gather(*(answer_to(port, BODY, len(BODY)) for _ in range(5)))


async def test_it_waits_for_the_rest_of_a_body_for_a_while_only() -> None:
    async for port in serving(lingering(0.05, 9)):
        async with asyncio.timeout(60):
            answer = await answer_to(port, b"half", 1_000)
        assert answer.startswith(b"HTTP/1.1 503")


async def test_no_more_are_waited_for_than_may_be() -> None:
    """Whoever comes beyond them is cut off: places in the server are for others."""
    ends: list[int] = []

    class Unfinished(Exchange):
        async def _send(self, message: Any) -> None:
            if message["type"] == "http.response.body" and not message.get("more_body"):
                ends.append(self.number)

    app = lingering(60, 2)
    asked = []
    for number in range(4):
        exchange = Unfinished(headers={"content-length": "9"}, incoming=[])
        exchange.number = number
        asked.append(asyncio.create_task(exchange.run(app)))
        await asyncio.sleep(0)
    await asyncio.wait(asked[2:])
    assert ends == [2, 3]
    for task in asked[:2]:
        task.cancel()
    await asyncio.wait(asked)
    last = Unfinished(headers={"content-length": "9"}, incoming=[])
    task = asyncio.create_task(last.run(app))
    await asyncio.sleep(0.01)
    assert not task.done()
    task.cancel()
