"""ASGI middlewares for every request: audit log and metrics, body limits, slow clients.

Starlette's ``BaseHTTPMiddleware`` is not used: it buffers and breaks cancellation.
"""

from __future__ import annotations

import asyncio
import logging
import re
import time
import uuid
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import cached_property
from http import HTTPStatus

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.routing import compile_path
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve_app.core.errors import BodyTimeout, SamServeError
from serve_app.core.limits import Limits
from serve_app.http.errors import count_rejection, error_response, unexpected_error
from serve_app.http.gate import too_large
from serve_app.http.request_info import NONE, PROBES, UNKNOWN_ROUTE, RequestInfo
from serve_app.telemetry.context import current_request_id, rename_request
from serve_app.telemetry.metrics import REQUEST_SECONDS, REQUESTS, REQUESTS_IN_FLIGHT

audit_log = logging.getLogger("serve_app.audit")

CLIENT_DISCONNECTED = 499
"""Status if the client disconnected before the response was sent, as in nginx."""

_POLLED = PROBES | {"/metrics"}
"""Routes that are polled frequently: at INFO their lines would hide all others."""

_REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,64}")
_ADDRESS = re.compile(r"[0-9A-Fa-f.:]{2,45}")
_METHOD = re.compile(r"[A-Z]{1,16}")


def request_id_of(headers: Headers) -> str:
    """The client's request id if it is plain and at most 64 characters long, or a new one."""
    sent = headers.get("x-request-id", "")
    return sent if _REQUEST_ID.fullmatch(sent) else uuid.uuid4().hex


class TrailingSlashMiddleware:
    """Serves ``/v1/segment/`` as ``/v1/segment``: many clients send no body again on a redirect."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and len(scope["path"]) > 1 and scope["path"].endswith("/"):
            scope = {**scope, "path": scope["path"][:-1]}
        await self._app(scope, receive, send)


class HeadMiddleware:
    """Serves HEAD as GET without the body, as probes of monitors and load balancers expect."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "HEAD":
            await self._app(scope, receive, send)
            return

        async def send_head(message: Message) -> None:
            if message["type"] == "http.response.body":
                message = {**message, "body": b""}
            await send(message)

        await self._app({**scope, "method": "GET"}, receive, send_head)


class AuditLogMiddleware:
    """Gives each request an id, an audit line and metrics, and turns unhandled exceptions into 500.

    The id is the client's ``x-request-id`` if that is plain and at most 64 characters long, and the
    response repeats it.  The audit line is written at INFO; for probes and ``/metrics`` at DEBUG.
    ``templates`` returns the paths of all routes; it is called at the first request.
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

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = request_id_of(Headers(scope=scope))
        info = RequestInfo(id=request_id, route=self._route(scope))
        scope["state"] = {**scope.get("state", {}), "request_info": info}
        # Ray Serve adds the id that it knows to the response by itself.
        add_id = current_request_id() != request_id
        rename_request(request_id)  # log lines and traces must show this id
        exchange = _Exchange(receive, send, request_id, add_id)
        started = self._clock()
        self._count(1)
        try:
            await self._app(scope, exchange.receive, exchange.send)
        except ClientDisconnect:
            exchange.disconnected = True
        except asyncio.CancelledError:
            exchange.disconnected = True
            raise
        except Exception as exc:
            exchange.failed = True
            error = unexpected_error(exc, request_id)
            info.error_code = error.code
            if exchange.status:
                # A truncated response must not look complete: the server drops the connection.
                raise
            with suppress(ClientDisconnect):
                await error_response(error, info)(scope, exchange.receive, exchange.send)
        finally:
            self._count(-1)
            self._record(scope, info, exchange, self._clock() - started)

    def _count(self, change: int) -> None:
        self._in_flight += change
        REQUESTS_IN_FLIGHT.set(self._in_flight)

    @cached_property
    def _routes(self) -> tuple[frozenset[str], list[tuple[re.Pattern[str], str]]]:
        """Paths without parameters, and patterns of those with parameters."""
        paths = list(self._templates())
        patterns = [(compile_path(path)[0], path) for path in paths if "{" in path]
        return frozenset(path for path in paths if "{" not in path), patterns

    def _route(self, scope: Scope) -> str:
        """Return the template of the route; one name for unknown paths, which callers make up."""
        path: str = scope["path"].removeprefix(scope.get("root_path", ""))
        paths, patterns = self._routes
        if path in paths:
            return path
        return next((name for regex, name in patterns if regex.match(path)), UNKNOWN_ROUTE)

    def _record(self, scope: Scope, info: RequestInfo, exchange: _Exchange, seconds: float) -> None:
        """Write the audit line and the metrics."""
        status, client = exchange.final_status, scope.get("client")
        REQUESTS.inc(route=info.route, status=str(status), code=info.error_code)
        REQUEST_SECONDS.observe(seconds, route=info.route)
        level = logging.DEBUG if info.route in _POLLED else logging.INFO
        if not audit_log.isEnabledFor(level):
            return
        facts = {
            "request_id": info.id,
            "key": info.key,
            "client": _plain(_ADDRESS, client[0]) if client else NONE,
            "method": _plain(_METHOD, scope["method"]),
            "http_route": info.route,
            "status": status,
            "error_code": info.error_code,
            "bytes_in": exchange.bytes_in,
            "bytes_out": exchange.bytes_out,
            "duration_ms": round(seconds * 1000, 1),
            "variant": info.variant,
            "prompts": info.prompts,
            "images": info.images,
        }
        # The message repeats all of it: Serve's text format omits extra fields.
        text = " ".join(f"{name}={value}" for name, value in facts.items())
        audit_log.log(level, text, extra=facts)


def _plain(form: re.Pattern[str], text: str) -> str:
    """Return ``text`` if it matches: a caller must not be able to forge an audit line."""
    return text if form.fullmatch(text) else NONE


class _Exchange:
    """Both directions of one request: adds the request id, counts bytes, notes how it ended."""

    def __init__(self, receive: Receive, send: Send, request_id: str, add_id: bool) -> None:
        self._receive, self._send = receive, send
        self._request_id, self._add_id = request_id, add_id
        self._complete = False
        self.status = 0
        self.disconnected = self.failed = False
        self.bytes_in = self.bytes_out = 0

    async def receive(self) -> Message:
        message = await self._receive()
        if message["type"] == "http.request":
            self.bytes_in += len(message.get("body", b""))
        elif message["type"] == "http.disconnect":
            self.disconnected = True
        return message

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            if self._add_id:
                MutableHeaders(scope=message)["x-request-id"] = self._request_id
        await self._send(message)
        if message["type"] == "http.response.body":
            self.bytes_out += len(message.get("body", b""))
            # A response that was sent while the client disconnected counts as not received.
            self._complete = not message.get("more_body", False) and not self.disconnected

    @property
    def final_status(self) -> int:
        if self.failed:
            return HTTPStatus.INTERNAL_SERVER_ERROR
        return self.status if self._complete else CLIENT_DISCONNECTED


class BodyLimitMiddleware:
    """Rejects bodies that turn out to be too large, and those that arrive too slowly.

    Nothing is buffered: bytes are counted as the route reads them, and the read raises
    `PayloadTooLarge` or `BodyTimeout`.  From the first read on, a body may take
    ``body_grace_seconds`` plus the time that its bytes need at ``min_body_bytes_per_second``, but
    at most ``max_body_seconds``.
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
        body = _Body(receive, self._limits, self._clock)
        try:
            await self._app(scope, body.receive, send)
        finally:
            body.close()


class _Body:
    """A body in transit: how much of it has arrived, and by when the rest must."""

    def __init__(self, receive: Receive, limits: Limits, clock: Callable[[], float]) -> None:
        self._receive = receive
        self._limits = limits
        self._clock = clock
        self._started: float | None = None
        self._arrived = 0
        self._complete = self._timed_out = False
        self._waiting: asyncio.Task[object] | None = None
        self._timer: asyncio.TimerHandle | None = None

    async def receive(self) -> Message:
        """Return the next message from the server, within the limits."""
        if self._complete:
            # All that can follow is the disconnect, at any time.
            return await self._receive()
        # After the deadline nothing more is read, even if it is already there.
        if self._seconds_left() <= 0:
            raise self._timeout()
        message = await self._receive_in_time()
        if message["type"] == "http.request":
            self._arrived += len(message.get("body", b""))
            if self._arrived > self._limits.max_body_bytes:
                raise count_rejection(too_large(self._limits))
            if not message.get("more_body", False):
                self._complete = True
                self.close()
        return message

    def close(self) -> None:
        """Stop the timer."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    async def _receive_in_time(self) -> Message:
        """Like `asyncio.timeout`, but with one timer for the body instead of one per message.

        Timers that were cancelled keep their memory until the loop runs, which it does not while
        pieces of a body are there already.
        """
        task = self._waiting = asyncio.current_task()
        if self._timer is None:
            self._check()
        cancelling = 0 if task is None else task.cancelling()
        try:
            return await self._receive()
        except asyncio.CancelledError:
            if self._timed_out and task is not None and task.uncancel() <= cancelling:
                raise self._timeout() from None
            raise
        finally:
            self._waiting = None

    def _check(self) -> None:
        """Cancel the read at the deadline; until then wait for it, as arriving bytes move it."""
        seconds = self._seconds_left()
        if seconds > 0:
            self._timer = asyncio.get_running_loop().call_later(seconds, self._check)
        elif self._waiting is not None:
            self._timed_out = True
            self._waiting.cancel()

    def _seconds_left(self) -> float:
        if self._started is None:
            # Time before the first read is not the client's: a busy process must not refuse its
            # body for it.
            self._started = self._clock()
        limits = self._limits
        at_rate = limits.body_grace_seconds + self._arrived / limits.min_body_bytes_per_second
        return self._started + min(limits.max_body_seconds, at_rate) - self._clock()

    def _timeout(self) -> SamServeError:
        return count_rejection(
            BodyTimeout(f"only {self._arrived} bytes of the request body arrived in time")
        )


class SlowClientMiddleware:
    """Disconnects clients that read too slowly, and waits for those that are still sending.

    A server's ``send`` blocks while the connection's buffer is full, forever if the client does not
    read.  So a message may take ``answer_grace_seconds`` plus the time that it needs at
    ``min_answer_bytes_per_second``; then `ClientDisconnect` is raised.

    Most clients send the whole body before they read.  If a server responds early and closes, the
    connection is reset and the client may never see the response (RFC 9112 section 9.6).  So after
    an early response the rest of the body is read and dropped for up to ``linger_seconds``, for at
    most ``max_lingering_requests`` at a time, since each occupies a place in the server.
    """

    def __init__(self, app: ASGIApp, *, limits: Limits) -> None:
        self._app = app
        self._limits = limits
        self._lingering = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        body_complete = lingers = False

        async def watch_body() -> Message:
            nonlocal body_complete
            message = await receive()
            body_complete = body_complete or not message.get("more_body", False)
            return message

        async def send_in_time(message: Message) -> None:
            nonlocal lingers
            if message["type"] == "http.response.body" and not message.get("more_body", False):
                lingers = not body_complete and self._may_linger(scope)
                self._lingering += lingers
                message = {**message, "more_body": lingers}
            await self._send(send, message)

        try:
            await self._app(scope, watch_body, send_in_time)
            if lingers:
                with suppress(TimeoutError):
                    async with asyncio.timeout(self._limits.linger_seconds):
                        while not body_complete:
                            await watch_body()
                with suppress(ClientDisconnect):
                    await self._send(send, {"type": "http.response.body", "body": b""})
        finally:
            self._lingering -= lingers

    def _may_linger(self, scope: Scope) -> bool:
        limits = self._limits
        if not limits.linger_seconds or self._lingering >= limits.max_lingering_requests:
            return False
        names = {name for name, _ in scope["headers"]}
        return bool(names & {b"content-length", b"transfer-encoding"})

    async def _send(self, send: Send, message: Message) -> None:
        limits = self._limits
        at_rate = len(message.get("body", b"")) / limits.min_answer_bytes_per_second
        try:
            async with asyncio.timeout(limits.answer_grace_seconds + at_rate):
                await send(message)
        except TimeoutError:
            raise ClientDisconnect from None
