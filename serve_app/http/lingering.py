"""An answer that comes before the body's end reaches its client all the same.

Most clients send all of a body before they read.  A server that answers early and closes then
resets the connection, and the client sees that instead of the answer; so the rest is read over.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress

from starlette.types import ASGIApp, Message, Receive, Scope, Send


class Lingering:
    """Outermost: ends an early answer only when the body has ended, or after some seconds.

    The application is done with the request by then: what is read over is kept by nobody.

    Args:
        seconds: for which a body is read over; 0: not at all.
        most: bodies read over at once; others are cut, for each takes a place in the server.
    """

    def __init__(self, app: ASGIApp, *, seconds: float, most: int) -> None:
        self._app = app
        self._seconds = seconds
        self._most = most
        self._lingering = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not self._seconds:
            await self._app(scope, receive, send)
            return
        body_ended = False
        answered = False

        async def watched() -> Message:
            nonlocal body_ended
            message = await receive()
            body_ended = body_ended or not message.get("more_body", False)
            return message

        async def held_open(message: Message) -> None:
            nonlocal answered
            if message["type"] == "http.response.body" and not message.get("more_body", False):
                answered = (
                    not body_ended and not _has_no_body(scope) and self._lingering < self._most
                )
                self._lingering += answered
                message = {**message, "more_body": answered}
            await send(message)

        try:
            await self._app(scope, watched, held_open)
            if answered:
                with suppress(TimeoutError):
                    async with asyncio.timeout(self._seconds):
                        while not body_ended:
                            await watched()
                await send({"type": "http.response.body", "body": b"", "more_body": False})
        finally:
            self._lingering -= answered


def _has_no_body(scope: Scope) -> bool:
    """Whether a request announces none, as those do that only ask."""
    names = {name for name, _ in scope["headers"]}
    return not names & {b"content-length", b"transfer-encoding"}
