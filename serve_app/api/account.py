"""One audit line, and the request metrics, for each request, however it ends."""

from __future__ import annotations

import asyncio
import logging
import re
import time
from collections.abc import Callable, Iterable
from http import HTTPStatus

from starlette.requests import ClientDisconnect
from starlette.routing import compile_path
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve_app.api.errors import request_id_of
from serve_app.api.tally import NONE, PROBES, UNKNOWN_ROUTE, Tally
from serve_app.domain.errors import InternalError
from serve_app.telemetry.catalogue import REQUEST_SECONDS, REQUESTS, REQUESTS_IN_FLIGHT

audit = logging.getLogger("serve_app.audit")

CLIENT_LEFT = 499
"""Status of a request whose client went before its answer was whole; nginx's convention."""

_POLLED = PROBES | {"/metrics"}
"""Routes that are polled all the time: their lines, at DEBUG, would hide all others."""

_ADDRESS = re.compile(r"[0-9A-Fa-f.:]{2,45}")
_METHOD = re.compile(r"[A-Z]{1,16}")


class Account:
    """Writes the audit line and the metrics of each request; see `Tally` for what is in it.

    The line is written at INFO, that of a probe or of ``/metrics`` at DEBUG.

    Args:
        templates: gives the paths of all routes, asked for at the first request.
        clock: seconds, from any beginning.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        templates: Callable[[], Iterable[str]],
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._app = app
        self._templates = templates
        self._clock = clock
        self._in_flight = 0
        self._plain: frozenset[str] | None = None
        self._patterns: list[tuple[re.Pattern[str], str]] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        tally = Tally(route=self._route(scope))
        scope["state"] = {**scope.get("state", {}), "tally": tally}
        watch = _Watch(receive, send)
        started = self._clock()
        self._count(1)
        try:
            await self._app(scope, watch.receive, watch.send)
        except (asyncio.CancelledError, ClientDisconnect):
            watch.left = True
            raise
        except BaseException:
            watch.failed = True
            tally.code = InternalError.code
            raise
        finally:
            self._count(-1)
            self._write(scope, tally, watch, self._clock() - started)

    def _count(self, change: int) -> None:
        self._in_flight += change
        REQUESTS_IN_FLIGHT.set(self._in_flight)

    def _route(self, scope: Scope) -> str:
        """The template of the route; one name for all that is none, or callers could make many."""
        if self._plain is None:
            templates = list(self._templates())
            self._plain = frozenset(path for path in templates if "{" not in path)
            self._patterns = [(compile_path(path)[0], path) for path in templates if "{" in path]
        path = scope["path"].removeprefix(scope.get("root_path", ""))
        if path in self._plain:
            return str(path)
        for pattern, template in self._patterns:
            if pattern.match(path):
                return template
        return UNKNOWN_ROUTE

    def _write(self, scope: Scope, tally: Tally, watch: _Watch, seconds: float) -> None:
        status = watch.outcome
        client = scope.get("client")
        facts = {
            "request_id": request_id_of(scope),
            "key": tally.key,
            "client": _plain(_ADDRESS, client[0]) if client else NONE,
            "method": _plain(_METHOD, scope["method"]),
            "http_route": tally.route,
            "status": status,
            "error_code": tally.code,
            "bytes_in": watch.bytes_in,
            "bytes_out": watch.bytes_out,
            "duration_ms": round(seconds * 1000, 1),
            "variant": tally.variant,
            "prompts": tally.prompts,
            "images": tally.images,
        }
        # The text holds all of it too: Serve's text format writes no extra fields.
        level = logging.DEBUG if tally.route in _POLLED else logging.INFO
        if audit.isEnabledFor(level):
            text = " ".join(f"{name}={value}" for name, value in facts.items())
            audit.log(level, text, extra=facts)
        REQUESTS.inc(route=tally.route, status=str(status), code=tally.code)
        REQUEST_SECONDS.observe(seconds, route=tally.route)


def _plain(form: re.Pattern[str], text: str) -> str:
    """``text`` if it is of the form: what a caller may write must not look like another line."""
    return text if form.fullmatch(text) else NONE


class _Watch:
    """Both directions of a request: what went through, and how it ended."""

    def __init__(self, receive: Receive, send: Send) -> None:
        self._receive, self._send = receive, send
        self._status = 0
        self._whole = False
        self.left = self.failed = False
        self.bytes_in = self.bytes_out = 0

    async def receive(self) -> Message:
        message = await self._receive()
        if message["type"] == "http.request":
            self.bytes_in += len(message.get("body", b""))
        elif message["type"] == "http.disconnect":
            self.left = True
        return message

    async def send(self, message: Message) -> None:
        await self._send(message)
        if message["type"] == "http.response.start":
            self._status = message["status"]
        elif message["type"] == "http.response.body":
            self.bytes_out += len(message.get("body", b""))
            # An answer that was sent while the client went counts as not received.
            self._whole = not message.get("more_body", False) and not self.left

    @property
    def outcome(self) -> int:
        """The status that tells how the request ended."""
        if self.failed:
            return HTTPStatus.INTERNAL_SERVER_ERROR
        return self._status if self._whole else CLIENT_LEFT
