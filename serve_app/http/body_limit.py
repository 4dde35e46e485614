"""How large a request's body may be, and how long it may take to come."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve_app.core.errors import BodyTimeout, PayloadTooLarge
from serve_app.core.limits import Limits
from serve_app.http.refusals import announced_bytes, refuse
from serve_app.telemetry.catalogue import REFUSALS


class BodyLimit:
    """Refuses a body that is too large, at once if announced, and one that comes too slowly.

    Nothing is kept here: bytes are counted as the route reads them, and `PayloadTooLarge` or
    `BodyTimeout` is raised from that read.  A body has ``body_grace_seconds``, and as many more
    as its bytes take at ``min_body_bytes_per_second``, but never more than ``max_body_seconds``.
    """

    def __init__(
        self, app: ASGIApp, *, limits: Limits, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._app = app
        self._limits = limits
        self._clock = clock

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        most = self._limits.max_body_bytes
        if (announced_bytes(scope) or 0) > most:
            await refuse(_too_large(most), "body_size", scope, receive, send)
            return
        body = _Body(receive, self._limits, self._clock)
        try:
            await self._app(scope, body.receive, send)
        finally:
            body.close()


def _too_large(most: int) -> PayloadTooLarge:
    return PayloadTooLarge(f"the request body is larger than {most} bytes")


class _Body:
    """A body on its way: how much of it has come, and until when the rest may."""

    def __init__(self, receive: Receive, limits: Limits, clock: Callable[[], float]) -> None:
        self._receive = receive
        self._limits = limits
        self._clock = clock
        self._began = clock()
        self._arrived = 0
        self._whole = self._late = False
        self._waiting: asyncio.Task[object] | None = None
        self._timer: asyncio.TimerHandle | None = None

    async def receive(self) -> Message:
        """The next message; the server's `receive`, within the limits."""
        if self._whole:
            # What comes now is only that the client leaves, at any time.
            return await self._receive()
        # Who is late gets no further piece read, even if it lies ready.
        if self._seconds_left() <= 0:
            raise self._timeout()
        message = await self._in_time()
        if message["type"] == "http.request":
            self._arrived += len(message.get("body", b""))
            if self._arrived > self._limits.max_body_bytes:
                REFUSALS.inc(reason="body_size")
                raise _too_large(self._limits.max_body_bytes)
            if not message.get("more_body", False):
                self._whole = True
                self.close()
        return message

    def close(self) -> None:
        """Nobody waits for the body any more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    async def _in_time(self) -> Message:
        """As `asyncio.timeout` does, but with one timer for a body and not one for each piece."""
        task = self._waiting = asyncio.current_task()
        if self._timer is None:
            self._check()
        cancelled = 0 if task is None else task.cancelling()
        try:
            return await self._receive()
        except asyncio.CancelledError:
            if self._late and task is not None and task.uncancel() <= cancelled:
                raise self._timeout() from None
            raise
        finally:
            self._waiting = None

    def _check(self) -> None:
        """Wait for the end of the body's time, which moves on while it comes; then end the wait."""
        left_s = self._seconds_left()
        if left_s > 0:
            self._timer = asyncio.get_running_loop().call_later(left_s, self._check)
        elif self._waiting is not None:
            self._late = True
            self._waiting.cancel()

    def _seconds_left(self) -> float:
        limits = self._limits
        at_rate = limits.body_grace_seconds + self._arrived / limits.min_body_bytes_per_second
        return self._began + min(limits.max_body_seconds, at_rate) - self._clock()

    def _timeout(self) -> BodyTimeout:
        REFUSALS.inc(reason="body_time")
        return BodyTimeout(f"only {self._arrived} bytes of the body came in time")
