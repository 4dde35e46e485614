"""The error envelope: converts every exception to an error response.

``{"error": {"code", "message", "field"?, "request_id"}}``.  The message is that of a
`SamServeError` or a fixed sentence: never the text of a library, never a part of the request.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, MutableMapping
from http import HTTPStatus
from typing import Any, TypeVar

import orjson
from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from serve_app.core.errors import (
    BodyTimeout,
    DeadlineExceeded,
    InternalError,
    InvalidRequest,
    MethodNotAllowed,
    NotFound,
    Overloaded,
    PayloadTooLarge,
    RateLimited,
    ReplicaLost,
    SamServeError,
    ShuttingDown,
    Unauthorized,
)
from serve_app.http.request_info import request_info
from serve_app.telemetry.metrics import REJECTIONS

logger = logging.getLogger("serve_app.http")

RETRY_AFTER_S = 1
"""Default of ``Retry-After``: queues drain in seconds."""

_RETRYABLE = (Overloaded, RateLimited, ReplicaLost, ShuttingDown)
_BODY_UNREAD = (PayloadTooLarge, BodyTimeout)
_REASONS: dict[type[SamServeError], str] = {
    Overloaded: "capacity",
    RateLimited: "rate",
    Unauthorized: "key",
    PayloadTooLarge: "body_size",
    BodyTimeout: "body_time",
    ShuttingDown: "stopping",
}
"""Values of the label ``reason`` of the metric `REJECTIONS`."""

_MALFORMED = "the request does not match the documented schema; see /docs"

ErrorT = TypeVar("ErrorT", bound=SamServeError)


class ErrorBody(BaseModel):
    """An error: `message` for people, `code` for programs."""

    code: str = Field(description="stable name of the kind of error", examples=["invalid_prompt"])
    message: str = Field(description="one sentence that says what is wrong")
    field: str | None = Field(
        None, description="the invalid field, if any", examples=["prompts[3].box"]
    )
    request_id: str = Field(description="the response's `x-request-id`; also in the log")


class ErrorEnvelope(BaseModel):
    """Every error response has this form."""

    error: ErrorBody


def request_id_of(scope_or_request: Request | MutableMapping[str, Any]) -> str:
    """Return the id that the middleware gave this request."""
    return request_info(scope_or_request).id


def unexpected_error(exc: BaseException, request_id: str) -> InternalError:
    """Log an unhandled exception with its traceback and return an error that reveals nothing."""
    logger.error("request %s failed", request_id, exc_info=exc, extra={"request_id": request_id})
    return InternalError("internal error; the service's log has the cause under this request_id")


def to_api_error(exc: Exception, request_id: str) -> SamServeError:
    """Return the error for the caller; log the cause if it is the service's fault."""
    if not isinstance(exc, SamServeError):
        return unexpected_error(exc, request_id)
    # Errors that callers cause are not logged: many requests must not flood the log.
    if exc.status >= HTTPStatus.INTERNAL_SERVER_ERROR and not isinstance(
        exc, (Overloaded, DeadlineExceeded)
    ):
        logger.warning("request %s: %s", request_id, exc.code, exc_info=exc)
    return exc


class ErrorResponse(Response):
    """An error response; records its code for the audit log when it is sent."""

    media_type = "application/json"

    def __init__(self, code: str, content: bytes, status: int, headers: Mapping[str, str]) -> None:
        super().__init__(content, status, headers)
        self._code = code

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request_info(scope).error_code = self._code
        await super().__call__(scope, receive, send)


def error_response(
    error: SamServeError,
    request_id: str,
    *,
    status: int | None = None,
    headers: Mapping[str, str] | None = None,
    extra: Mapping[str, Any] | None = None,
) -> ErrorResponse:
    """Build the response to a failed request.

    Args:
        error: the error to return.
        request_id: of the failed request.
        status: HTTP status, if not the error's own.
        headers: further headers.
        extra: further members beside ``error``.
    """
    all_headers = dict(headers or {})
    if isinstance(error, _RETRYABLE):
        all_headers.setdefault("retry-after", str(error.retry_after_s or RETRY_AFTER_S))
    if isinstance(error, _BODY_UNREAD):
        # The rest of the body is not read, so the connection cannot serve another request.
        all_headers["connection"] = "close"
    if isinstance(error, Unauthorized):
        all_headers["www-authenticate"] = "Bearer"
    body = {"error": {**error.body(), "request_id": request_id}, **(extra or {})}
    return ErrorResponse(error.code, orjson.dumps(body), status or error.status, all_headers)


def count_rejection(error: ErrorT) -> ErrorT:
    """Count the rejection of a request, and return the error to raise."""
    REJECTIONS.inc(reason=_REASONS[type(error)])
    return error


def register_exception_handlers(app: FastAPI) -> None:
    """Make ``app`` respond to every exception of a route with the error envelope."""

    async def api_error(request: Request, exc: Exception) -> Response:
        request_id = request_id_of(request)
        return error_response(to_api_error(exc, request_id), request_id)

    async def http_error(request: Request, exc: Exception) -> Response:
        assert isinstance(exc, HTTPException)  # noqa: S101 (for the type checker)
        error: SamServeError
        if exc.status_code == HTTPStatus.NOT_FOUND:
            error = NotFound("there is no such route; /docs lists them")
        elif exc.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
            error = MethodNotAllowed("this route does not support the method; see /docs")
        elif exc.status_code < HTTPStatus.INTERNAL_SERVER_ERROR:
            error = InvalidRequest(_MALFORMED)
        else:
            error = unexpected_error(exc, request_id_of(request))
        return error_response(error, request_id_of(request), headers=exc.headers)

    async def validation_error(request: Request, exc: Exception) -> Response:
        return error_response(InvalidRequest(_MALFORMED), request_id_of(request))

    app.add_exception_handler(SamServeError, api_error)
    app.add_exception_handler(HTTPException, http_error)
    app.add_exception_handler(RequestValidationError, validation_error)


def error_responses(
    *errors: type[SamServeError], status: Mapping[int, int] | None = None, body: bool = True
) -> dict[int | str, dict[str, Any]]:
    """Return OpenAPI ``responses`` for the errors of a route, grouped by status.

    Args:
        errors: those of the route itself; the errors of all routes are added.
        status: replaces a status by another, for routes that follow older conventions.
        body: whether the route reads a body, which is subject to body and capacity limits.
    """
    of_body = (PayloadTooLarge, BodyTimeout, Overloaded, ShuttingDown) if body else ()
    by_status: dict[int, list[type[SamServeError]]] = {}
    for error in dict.fromkeys((*errors, Unauthorized, RateLimited, *of_body, InternalError)):
        by_status.setdefault((status or {}).get(error.status, error.status), []).append(error)
    responses: dict[int | str, dict[str, Any]] = {}
    for code, kinds in sorted(by_status.items()):
        lines = [f"`{kind.code}`: {(kind.__doc__ or '').splitlines()[0]}" for kind in kinds]
        responses[code] = {"model": ErrorEnvelope, "description": "\n\n".join(lines)}
        if any(kind in _RETRYABLE for kind in kinds):
            responses[code]["headers"] = {
                "Retry-After": {"schema": {"type": "string"}, "description": "seconds to wait"}
            }
    return responses
