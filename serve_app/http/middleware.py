"""The outermost ASGI middleware: request ids, and the last line of defence.

Starlette's ``BaseHTTPMiddleware`` is not used: it buffers and breaks cancellation.
"""

from __future__ import annotations

import re
import uuid

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve_app.http.errors import error_response, unexpected
from serve_app.telemetry.request import rename_request
from serve_app.telemetry.request import request_id as known_id

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
        # Ray Serve puts the id that it knows into the answer by itself.
        told = known_id() == request_id
        rename_request(request_id)  # whatever id it had: log lines and traces must agree with us
        started = False

        async def send_with_id(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                if not told:
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
