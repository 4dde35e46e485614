"""The current request: its id, its place in a trace, and the context of work that is shared.

A task that is started inside a request's context belongs to it: Ray Serve cancels its calls with
that request's.  Shared work (an image that several callers wait for, a pass of an engine) must
not end so; `shared_context` keeps only what log lines and traces need.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from contextvars import Context
from typing import Any, Protocol

from opentelemetry import context as otel_context
from opentelemetry import trace


class RequestContext(Protocol):
    """Access to the current request in the framework of a process."""

    def request_id(self) -> str:
        """Return the id of the current request; empty outside of one."""

    def rename(self, request_id: str) -> None:
        """Change the id of the current request, in this process and in calls from it."""

    def carry(self) -> Callable[[], None]:
        """Return a function that adds the request to another context, without its cancellation."""


TracePosition = otel_context.Context | None
"""A place in a trace; None: not recorded."""

_requests: RequestContext | None = None
_tracer: trace.Tracer | None = None
_NO_SPAN = nullcontext()


def set_request_context(requests: RequestContext | None) -> None:
    """Set this process's access to the current request."""
    global _requests
    _requests = requests


def set_tracer(tracer: trace.Tracer | None) -> None:
    """Set the tracer of this process; None, the default: spans have no effect."""
    global _tracer
    _tracer = tracer


def current_request_id() -> str:
    """Return the id of the current request; empty outside of one."""
    return "" if _requests is None else _requests.request_id()


def rename_request(request_id: str) -> None:
    """Change the id of the current request, in log lines, calls and traces."""
    if _requests is not None:
        _requests.rename(request_id)


def shared_context() -> Context:
    """Return a context for work that outlives the current request or is shared by several.

    For log lines and traces, it belongs to the request that started it.
    """
    context = Context()
    if _requests is not None:
        context.run(_requests.carry())
    if _tracer is not None:
        context.run(otel_context.attach, otel_context.get_current())
    return context


def span(name: str) -> AbstractContextManager[Any]:
    """Return a span around a block, within the current request's trace."""
    return _NO_SPAN if _tracer is None else _tracer.start_as_current_span(name)


def current_trace() -> TracePosition:
    """Return the current position in a trace, for `record_span`; None if it is not recorded."""
    if _tracer is None or not trace.get_current_span().is_recording():
        return None
    return otel_context.get_current()


def record_span(name: str, parent: TracePosition, start: float, end: float, *, items: int) -> None:
    """Record a finished span below ``parent``; times are those of ``time.monotonic``.

    For shared work: each request with ``items`` in it gets a span of its own.
    """
    if _tracer is None or parent is None:
        return
    offset = time.time() - time.monotonic()
    finished = _tracer.start_span(
        name, parent, attributes={"items": items}, start_time=_ns(start + offset)
    )
    finished.end(_ns(end + offset))


def _ns(seconds: float) -> int:
    return int(seconds * 1e9)
