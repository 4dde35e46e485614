"""Answers to requests that are refused before any work, most of them with their body unread."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from typing import Literal

from starlette.datastructures import Headers
from starlette.types import Receive, Scope, Send

from serve_app.core.errors import SamServeError
from serve_app.http.errors import error_response, request_id_of
from serve_app.telemetry.catalogue import REFUSALS

Reason = Literal["capacity", "rate", "key", "body_size", "body_time", "stopping"]

_DIGITS = re.compile(r"[0-9]+")
_MOST_DIGITS = 18
_FEW_BYTES = 256 * 2**10
"""So much of an unread body the server reads over sooner than a new connection is made.

A connection that is closed while its client still sends is reset, and the answer may be lost.
"""


def announced_bytes(scope: Scope) -> int | None:
    """The size of the body as its header says; None: it does not say."""
    headers = Headers(scope=scope)
    if "transfer-encoding" in headers:
        return None
    text = headers.get("content-length", "0")
    if not _DIGITS.fullmatch(text):
        return None
    # Python refuses to read numbers of thousands of digits.
    return int(text) if len(text) <= _MOST_DIGITS else sys.maxsize


async def refuse(
    error: SamServeError,
    reason: Reason,
    scope: Scope,
    receive: Receive,
    send: Send,
    headers: Mapping[str, str] | None = None,
) -> None:
    """Answer with an error and leave the body; the connection ends unless there is little of it."""
    REFUSALS.inc(reason=reason)
    more = dict(headers or {})
    size = announced_bytes(scope)
    if size is None or size > _FEW_BYTES:
        more["connection"] = "close"
    await error_response(error, request_id_of(scope), headers=more)(scope, receive, send)
