"""What Ray Serve itself says to HTTP clients, in the service's form; and whose time limits count.

Ray's proxies, and ingress replicas behind its HAProxy, answer with plain text when a request times
out or finds no replica.  Ray calls `middlewares` wherever it listens for HTTP
(``RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH``).
"""

from __future__ import annotations

import json

from starlette.datastructures import Headers, MutableHeaders
from starlette.middleware import Middleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve_app.core.errors import (
    DeadlineExceeded,
    InternalError,
    NotFound,
    Overloaded,
    SamServeError,
    WeightsUnavailable,
)
from serve_app.http.middleware import request_id_of
from serve_app.http.request_info import KEPT_TIMEOUT_HEADER, TIMEOUT_HEADER

_RAYS_OWN_ROUTES = "/-/"
_RAYS_STATUSES = frozenset({404, 408, 429, 500, 503})
_LONGEST = 4096
BACKPRESSURE = "dropped due to backpressure"
"""In Ray's text and in ours: the front takes a service that is too busy for its probe for ready."""


def middlewares() -> list[Middleware]:
    """Called by Ray, in each process that listens for HTTP."""
    return [Middleware(ServiceForm)]


class ServiceForm:
    """Gives Ray's plain-text errors the service's form, and hides the caller's timeout from Ray.

    Ray's clock starts before the service's and would always end first, with a text and a 408; the
    service obeys the timeout under the other name.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"].startswith(_RAYS_OWN_ROUTES):
            await self._app(scope, receive, send)
            return
        names = {TIMEOUT_HEADER.encode(): KEPT_TIMEOUT_HEADER.encode()}
        headers = [(names.get(name, name), value) for name, value in scope["headers"]]
        held: Message | None = None
        text = b""

        async def send_in_form(message: Message) -> None:
            nonlocal held, text
            if message["type"] == "http.response.start" and _is_rays(message):
                held = message
            elif held is None:
                await send(message)
            else:
                text = (text + message.get("body", b""))[:_LONGEST]
                if not message.get("more_body", False):
                    error = _error(held["status"], text.decode("utf-8", "replace"))
                    for part in _response(error, held, request_id_of(Headers(scope=scope))):
                        await send(part)

        await self._app({**scope, "headers": headers}, receive, send_in_form)


def _is_rays(start: Message) -> bool:
    """Whether a response is Ray's: the service's own errors are JSON."""
    kind = Headers(raw=start["headers"]).get("content-type", "")
    return start["status"] in _RAYS_STATUSES and kind.startswith("text/plain")


def _error(status: int, text: str) -> SamServeError:
    if status == 408:
        return DeadlineExceeded("the response was not ready in time")
    if status == 404:
        return NotFound("there is no such route; /docs lists them")
    if status == 500:
        return InternalError("internal error; the service's log has the cause")
    if status == 503 and BACKPRESSURE not in text:
        return WeightsUnavailable("the deployment is not available: it could not start")
    return Overloaded(f"the request was {BACKPRESSURE}; retry later")


def _response(error: SamServeError, rays: Message, own_id: str) -> tuple[Message, Message]:
    headers = MutableHeaders(raw=list(rays["headers"]))
    request_id = headers.setdefault("x-request-id", own_id)
    body = json.dumps({"error": {**error.body(), "request_id": request_id}}).encode()
    headers["content-type"] = "application/json"
    headers["content-length"] = str(len(body))
    if isinstance(error, Overloaded):
        headers.setdefault("retry-after", "1")
    start = {**rays, "status": error.status, "headers": headers.raw}
    return start, {"type": "http.response.body", "body": body}
