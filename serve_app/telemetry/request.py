"""The request at hand: its id, and what of it goes along to work that several requests share.

A task that is started inside a request's context belongs to it: Ray Serve cancels its calls with
that request's.  Shared work (an image that several callers wait for, a pass of an engine) must
not end so; `shared_context` takes along only what log lines and traces need.
"""

from __future__ import annotations

from collections.abc import Callable
from contextvars import Context
from typing import Protocol

Carry = Callable[[], None]
"""Makes the context it is called in know the request."""


class Requests(Protocol):
    """Who knows requests; one for a process."""

    def request_id(self) -> str:
        """The id of the request at hand; empty outside of one."""
        ...

    def rename(self, request_id: str) -> None:
        """The request at hand has this id from now on, in this process and behind it."""
        ...

    def carry(self) -> Carry:
        """What takes along the request at hand, without its cancellation."""
        ...


_requests: Requests | None = None


def requests_known_by(requests: Requests | None) -> None:
    """Whoever asks in this process asks ``requests`` from now on."""
    global _requests
    _requests = requests


def request_id() -> str:
    """The id of the request at hand; empty outside of one, or where nobody knows."""
    return "" if _requests is None else _requests.request_id()


def rename_request(request_id: str) -> None:
    """The request at hand has this id from now on, in log lines, calls and traces."""
    if _requests is not None:
        _requests.rename(request_id)


def shared_context() -> Context:
    """A context for work that outlives the request at hand or is not its alone.

    It belongs, for log lines and traces, to the request that began it.
    """
    context = Context()
    if _requests is not None:
        context.run(_requests.carry())
    return context
