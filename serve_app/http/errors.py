"""The error envelope: converts every exception to an error response.

``{"error": {"code", "message", "field"?, "request_id"}}``.  The message is that of a
`SamServeError` or a fixed sentence: never the text of a library, never a part of the request.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

import orjson
from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

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
from serve_app.http.request_info import RequestInfo, request_info
from serve_app.telemetry.metrics import REJECTIONS

logger = logging.getLogger("serve_app.http")

_RETRY_AFTER_S = 1
"""Default of ``Retry-After``: queues drain in seconds."""

RETRYABLE = (Overloaded, RateLimited, ReplicaLost, ShuttingDown)
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


def error_response(
    error: SamServeError,
    info: RequestInfo,
    *,
    status: int | None = None,
    headers: Mapping[str, str] | None = None,
    extra: Mapping[str, Any] | None = None,
) -> Response:
    """Build the response to a failed request, and note its code for the audit log.

    Args:
        status: HTTP status, if not the error's own.
        extra: further members beside ``error``.
    """
    info.error_code = error.code
    all_headers = dict(headers or {})
    if isinstance(error, RETRYABLE):
        all_headers.setdefault("retry-after", str(error.retry_after_s or _RETRY_AFTER_S))
    if isinstance(error, _BODY_UNREAD):
        # The rest of the body is not read, so the connection cannot serve another request.
        all_headers["connection"] = "close"
    if isinstance(error, Unauthorized):
        all_headers["www-authenticate"] = "Bearer"
    body = {"error": {**error.body(), "request_id": info.id}, **(extra or {})}
    return Response(
        orjson.dumps(body), status or error.status, all_headers, media_type="application/json"
    )


def count_rejection(error: SamServeError) -> SamServeError:
    """Count the rejection of a request, and return the error to raise."""
    REJECTIONS.inc(reason=_REASONS[type(error)])
    return error


def register_exception_handlers(app: FastAPI) -> None:
    """Make ``app`` respond to every exception of a route with the error envelope."""

    async def respond(request: Request, exc: Exception) -> Response:
        info = request_info(request)
        headers = exc.headers if isinstance(exc, HTTPException) else None
        return error_response(to_api_error(_typed(exc), info.id), info, headers=headers)

    for kind in (SamServeError, HTTPException, RequestValidationError):
        app.add_exception_handler(kind, respond)


def _typed(exc: Exception) -> Exception:
    """An error of the framework as one of ours, if a caller caused it."""
    status = exc.status_code if isinstance(exc, HTTPException) else 0
    if status == HTTPStatus.NOT_FOUND:
        return NotFound("there is no such route; /docs lists them")
    if status == HTTPStatus.METHOD_NOT_ALLOWED:
        return MethodNotAllowed("this route does not support the method; see /docs")
    if isinstance(exc, RequestValidationError) or 0 < status < HTTPStatus.INTERNAL_SERVER_ERROR:
        return InvalidRequest("the request does not match the documented schema; see /docs")
    return exc
