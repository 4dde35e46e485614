"""The error envelope: how every error, foreign or our own, becomes an answer.

``{"error": {"code", "message", "field"?, "request_id"}}``.  The text is that of a
`SamServeError`, or a fixed sentence: never a library's text, never a part of the request.
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
from serve_app.http.tally import tally_of

logger = logging.getLogger("serve_app.http")

RETRY_AFTER_S = 1
"""What clients are told to wait where nothing better is known: queues empty in seconds."""

_AGAIN = (Overloaded, RateLimited, ReplicaLost, ShuttingDown)
_REFUSED: tuple[type[SamServeError], ...] = (Unauthorized, RateLimited)
_UNREAD: tuple[type[SamServeError], ...] = (PayloadTooLarge, BodyTimeout)


class ErrorBody(BaseModel):
    """What went wrong, for people (`message`) and programs (`code`)."""

    code: str = Field(description="stable name of the kind of error", examples=["invalid_prompt"])
    message: str = Field(description="one sentence that helps")
    field: str | None = Field(
        None, description="the field at fault, if one is", examples=["prompts[3].box"]
    )
    request_id: str = Field(description="the answer's `x-request-id`; the log has it too")


class ErrorEnvelope(BaseModel):
    """Every error answer has this form."""

    error: ErrorBody


def request_id_of(scope_or_request: Request | Mapping[str, Any]) -> str:
    """The id that the middleware gave this request."""
    if isinstance(scope_or_request, Request):
        scope_or_request = scope_or_request.scope
    return str(scope_or_request.get("state", {}).get("request_id", ""))


def envelope(error: SamServeError, request_id: str) -> dict[str, Any]:
    """The error as the body of an answer."""
    return {"error": {**error.body(), "request_id": request_id}}


def unexpected(exc: BaseException, request_id: str) -> InternalError:
    """Log a fault of ours with its traceback; the error that tells the caller nothing of it."""
    logger.error("request %s failed", request_id, exc_info=exc, extra={"request_id": request_id})
    return InternalError("the service failed; its log has the cause under this request_id")


def logged(exc: Exception, request_id: str) -> SamServeError:
    """What to tell of an exception; where the service is at fault, the log then has the cause."""
    if not isinstance(exc, SamServeError):
        return unexpected(exc, request_id)
    # Not of what callers bring about: a flood of requests must not become a flood of the log.
    if exc.status >= HTTPStatus.INTERNAL_SERVER_ERROR and not isinstance(
        exc, (Overloaded, DeadlineExceeded)
    ):
        logger.warning("request %s: %s", request_id, exc.code, exc_info=exc)
    return exc


class ErrorResponse(Response):
    """An error's answer, which tells its code to the audit line when it is sent."""

    media_type = "application/json"

    def __init__(self, code: str, content: bytes, status: int, headers: Mapping[str, str]) -> None:
        super().__init__(content, status, headers)
        self._code = code

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        tally_of(scope).code = self._code
        await super().__call__(scope, receive, send)


def error_response(
    error: SamServeError,
    request_id: str,
    *,
    status: int | None = None,
    headers: Mapping[str, str] | None = None,
    extra: Mapping[str, Any] | None = None,
) -> Response:
    """The answer to a failed request.

    Args:
        status: another HTTP status than the error's own.
        headers: more headers.
        extra: more members beside ``error``.
    """
    all_headers = dict(headers or {})
    if isinstance(error, _AGAIN):
        all_headers.setdefault("retry-after", str(error.retry_after_s or RETRY_AFTER_S))
    if isinstance(error, _UNREAD):
        # The rest of the body is not read, so the connection cannot serve another request.
        all_headers["connection"] = "close"
    content = orjson.dumps({**envelope(error, request_id), **(extra or {})})
    return ErrorResponse(error.code, content, status or error.status, all_headers)


def install(app: FastAPI) -> None:
    """Make `app` answer every error that a route raises in the envelope."""

    async def typed(request: Request, exc: Exception) -> Response:
        request_id = request_id_of(request)
        return error_response(logged(exc, request_id), request_id)

    async def http(request: Request, exc: Exception) -> Response:
        assert isinstance(exc, HTTPException)  # noqa: S101 (for the type checker)
        error: SamServeError
        if exc.status_code == HTTPStatus.NOT_FOUND:
            error = NotFound("there is no such route; /docs lists them")
        elif exc.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
            error = MethodNotAllowed("this route exists, for another method; see /docs")
        elif exc.status_code < HTTPStatus.INTERNAL_SERVER_ERROR:
            error = InvalidRequest("the request is not of the documented form; see /docs")
        else:
            error = unexpected(exc, request_id_of(request))
        return error_response(error, request_id_of(request), headers=exc.headers)

    async def validation(request: Request, exc: Exception) -> Response:
        error = InvalidRequest("the request is not of the documented form; see /docs")
        return error_response(error, request_id_of(request))

    app.add_exception_handler(SamServeError, typed)
    app.add_exception_handler(HTTPException, http)
    app.add_exception_handler(RequestValidationError, validation)


def declared(
    *errors: type[SamServeError], status: Mapping[int, int] | None = None, body: bool = True
) -> dict[int | str, dict[str, Any]]:
    """OpenAPI ``responses`` for the errors a route can answer with, grouped by status.

    Args:
        status: replaces a status by another, for routes that keep to older conventions.
        body: the route works on a body, which is bounded as the number of such requests is.
    """
    of_body = (PayloadTooLarge, BodyTimeout, Overloaded, ShuttingDown) if body else ()
    by_status: dict[int, list[type[SamServeError]]] = {}
    for error in dict.fromkeys((*errors, *_REFUSED, *of_body, InternalError)):
        by_status.setdefault((status or {}).get(error.status, error.status), []).append(error)
    responses: dict[int | str, dict[str, Any]] = {}
    for code, same in sorted(by_status.items()):
        told = [f"`{kind.code}`: {(kind.__doc__ or '').splitlines()[0]}" for kind in same]
        responses[code] = {"model": ErrorEnvelope, "description": "\n\n".join(told)}
        if any(kind in _AGAIN for kind in same):
            responses[code]["headers"] = {
                "Retry-After": {"schema": {"type": "string"}, "description": "seconds to wait"}
            }
    return responses
