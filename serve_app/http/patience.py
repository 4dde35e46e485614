"""A client that does not take its answer keeps its place for a while only."""

from __future__ import annotations

import asyncio

from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve_app.core.limits import Limits


class Patience:
    """Counts a client as gone that takes a piece of its answer too slowly.

    A server's ``send`` waits while the connection is full, for ever if nobody reads.
    """

    def __init__(self, app: ASGIApp, *, limits: Limits) -> None:
        self._app = app
        self._limits = limits

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        limits = self._limits

        async def patient(message: Message) -> None:
            at_rate = len(message.get("body", b"")) / limits.min_answer_bytes_per_second
            try:
                async with asyncio.timeout(limits.answer_grace_seconds + at_rate):
                    await send(message)
            except TimeoutError:
                raise ClientDisconnect from None

        await self._app(scope, receive, patient)
