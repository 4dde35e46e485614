"""Pure ASGI middleware around all routes: request ids, the last line of defence, body size.

Starlette's ``BaseHTTPMiddleware`` is not used: it buffers and breaks cancellation.
"""

from __future__ import annotations

import re
import uuid

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve_app.api.errors import error_response, request_id_of, unexpected
from serve_app.domain.errors import PayloadTooLarge

_DIGITS = re.compile(r"[0-9]+")
_REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,64}")


class RequestIds:
    """Gives each request an id, each answer its ``x-request-id``, each fault a 500.

    The id is the client's own where it sent a plain one of at most 64 characters.  A
    cancellation passes through.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        sent = Headers(scope=scope).get("x-request-id", "")
        request_id = sent if _REQUEST_ID.fullmatch(sent) else uuid.uuid4().hex
        scope["state"] = {**scope.get("state", {}), "request_id": request_id}
        started = False

        async def send_with_id(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                MutableHeaders(scope=message)["x-request-id"] = request_id
            await send(message)

        try:
            await self._app(scope, receive, send_with_id)
        except ClientDisconnect:
            return
        except Exception as exc:
            error = unexpected(exc, request_id)
            if started:
                # Half an answer must not look whole: the server drops the connection.
                raise
            await error_response(error, request_id)(scope, receive, send_with_id)


class BodyLimit:
    """Refuses a body beyond ``max_bytes``: at once if announced, else while it arrives.

    Nothing is kept here: the bytes are counted as the route reads them, and `PayloadTooLarge`
    is raised from that read.
    """

    def __init__(self, app: ASGIApp, *, max_bytes: int) -> None:
        self._app = app
        self._max_bytes = max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        too_large = PayloadTooLarge(f"the request body is larger than {self._max_bytes} bytes")
        announced = Headers(scope=scope).get("content-length", "")
        if _DIGITS.fullmatch(announced) and (
            len(announced) > 18 or int(announced) > self._max_bytes
        ):
            await error_response(too_large, request_id_of(scope))(scope, receive, send)
            return
        arrived = 0

        async def counted() -> Message:
            nonlocal arrived
            message = await receive()
            if message["type"] == "http.request":
                arrived += len(message.get("body", b""))
                if arrived > self._max_bytes:
                    raise too_large
            return message

        await self._app(scope, counted, send)
