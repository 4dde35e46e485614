"""The time that the present request has left, for whoever works for it without being told.

It is ambient, as a log's request id is: set once where a request comes in, read where work joins
a queue.  Between processes it travels as seconds left, since their clocks differ.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from contextvars import ContextVar

_UNTIL: ContextVar[float] = ContextVar("until", default=math.inf)


def until() -> float:
    """The instant of ``time.monotonic`` at which the caller's time is over; infinite: never."""
    return _UNTIL.get()


def time_left_s() -> float | None:
    """Seconds until then, negative afterwards; None: no bound."""
    end = until()
    return None if end == math.inf else end - time.monotonic()


@contextmanager
def deadline(end: float) -> Iterator[None]:
    """What runs inside has time until ``end`` at most.  It is told so, not stopped."""
    token = _UNTIL.set(min(end, until()))
    try:
        yield
    finally:
        _UNTIL.reset(token)


@asynccontextmanager
async def time_limit(seconds: float | None) -> AsyncIterator[asyncio.Timeout]:
    """`asyncio.timeout`, of which all that runs inside can know; None: no bound.

    Raises:
        TimeoutError: the time was over.
    """
    end = math.inf if seconds is None else time.monotonic() + seconds
    with deadline(end):
        async with asyncio.timeout(seconds) as timeout:
            yield timeout
