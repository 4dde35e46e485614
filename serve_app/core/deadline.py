"""The deadline of the present request, as a context variable.

It is set where a request arrives and read where work is queued.  Between processes it is passed
as remaining seconds, because their clocks differ.
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
    """The deadline in ``time.monotonic`` seconds; infinite: none."""
    return _UNTIL.get()


def time_left_s() -> float | None:
    """Seconds until the deadline, negative after it; None: no deadline."""
    end = until()
    return None if end == math.inf else end - time.monotonic()


@contextmanager
def deadline(end: float) -> Iterator[None]:
    """Lower the deadline of the code inside to ``end``, without cancelling it."""
    token = _UNTIL.set(min(end, until()))
    try:
        yield
    finally:
        _UNTIL.reset(token)


@asynccontextmanager
async def time_limit(seconds: float | None) -> AsyncIterator[asyncio.Timeout]:
    """`asyncio.timeout` that also sets the deadline; None: no limit.

    Raises:
        TimeoutError: the time limit was exceeded.
    """
    end = math.inf if seconds is None else time.monotonic() + seconds
    with deadline(end):
        async with asyncio.timeout(seconds) as timeout:
            yield timeout
