"""Clients that do not read their answers are counted as gone."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from starlette.requests import ClientDisconnect

from serve_app.core.limits import Limits
from serve_app.http.middleware import SlowClientMiddleware
from serve_app.http.stream import NdjsonResponse

from .asgi import Exchange, fine

SCOPE = {"type": "http", "headers": []}
LIMITS = Limits(answer_grace_seconds=0.02, min_answer_bytes_per_second=1_000_000)


async def _full(*message: Any) -> None:
    """The ``send`` of a connection that nobody reads, or the ``receive`` of a silent one."""
    await asyncio.Event().wait()


async def test_who_takes_nothing_is_gone() -> None:
    async with asyncio.timeout(60):
        with pytest.raises(ClientDisconnect):
            await SlowClientMiddleware(fine, limits=LIMITS)(SCOPE, _full, _full)


async def test_a_large_piece_may_take_longer() -> None:
    taken: list[Any] = []

    async def slowly(message: Any) -> None:
        await asyncio.sleep(0.05)
        taken.append(message)

    async def large(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.body", "body": bytes(10_000_000)})

    await SlowClientMiddleware(large, limits=LIMITS)(SCOPE, _full, slowly)
    assert len(taken) == 1


async def test_a_batch_ends_with_its_client_and_its_jobs_with_it() -> None:
    started = 0

    async def job() -> bytes:
        nonlocal started
        started += 1
        return b"{}"

    async def batch(scope: Any, receive: Any, send: Any) -> None:
        await NdjsonResponse([job] * 100, 2)(scope, receive, send)

    async def first_only(message: Any) -> None:
        if message["type"] == "http.response.body":
            await asyncio.Event().wait()

    async with asyncio.timeout(60):
        with pytest.raises(ClientDisconnect):
            await SlowClientMiddleware(batch, limits=LIMITS)(SCOPE, _full, first_only)
    assert started <= 4


async def test_who_reads_is_answered() -> None:
    assert (await Exchange().run(SlowClientMiddleware(fine, limits=LIMITS))).status == 200
