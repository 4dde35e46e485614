"""Spans: what a request's time went into, as a trace shows it.

Where nobody traces, which is usual, all of this costs a comparison.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol

Parent = Any
"""A place in a trace; opaque.  None: nobody traces."""


class Tracer(Protocol):
    """Who traces; one for a process."""

    def span(self, name: str) -> AbstractContextManager[Any]:
        """A span of the request at hand around a block."""
        ...

    def here(self) -> Parent:
        """Where the request at hand is in its trace."""
        ...

    def record(self, name: str, parent: Parent, began: float, ended: float, items: int) -> None:
        """A span that is over; times are instants of ``time.monotonic``."""
        ...


_tracer: Tracer | None = None
_NOTHING = nullcontext()


def trace_with(tracer: Tracer | None) -> None:
    """Spans of this process go to ``tracer`` from now on."""
    global _tracer
    _tracer = tracer


def span(name: str) -> AbstractContextManager[Any]:
    """A span of the request at hand around a block."""
    return _NOTHING if _tracer is None else _tracer.span(name)


def here() -> Parent:
    """Where the request at hand is in its trace, for `record`."""
    return None if _tracer is None else _tracer.here()


def record(name: str, parent: Parent, began: float, ended: float, *, items: int) -> None:
    """A span that is over, below ``parent``; times are instants of ``time.monotonic``.

    For work that is shared: each request that has ``items`` in it gets a span of its own.
    """
    if _tracer is not None and parent is not None:
        _tracer.record(name, parent, began, ended, items)
