"""Time that passes when a test says so, or when the event loop has nothing else to do."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, TypeVar

import pytest

T = TypeVar("T")


def repeat_if_slow(call: Callable[[], tuple[T, float]], limit_s: float) -> tuple[T, float]:
    """The result of a call that measures itself, and its seconds on the processor.

    A slow call is repeated, at most four times, and the quickest one counts: garbage collection in
    a large process or threads of other tests may fall into one call, but not into each.
    """
    result, seconds = call()
    for _ in range(4):
        if seconds < limit_s:
            break
        result, again = call()
        seconds = min(seconds, again)
    return result, seconds


class Clock:
    """Seconds of a clock that stands still until `now` is changed."""

    def __init__(self, now: float = 1000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


def use_clock(patch: pytest.MonkeyPatch, clock: Callable[[], float]) -> None:
    """Let all imported modules of the project read this clock instead of the machine's.

    ``time.monotonic`` and ``time.perf_counter`` are replaced where a module calls them through its
    own name ``time``; libraries, and event loops, keep theirs.
    """
    virtual = SimpleNamespace(**vars(time))
    virtual.monotonic = virtual.perf_counter = clock
    for name, module in list(sys.modules.items()):
        if name.startswith("serve_app.") and getattr(module, "time", None) is time:
            patch.setattr(module, "time", virtual)


class VirtualTime(Clock):
    """The clock of an event loop that does not wait: when nothing is ready, it is later at once.

    Timeouts and sleeps of any length cost nothing, and a machine that is busy for a while makes
    none of them run out.  While a function runs in another thread the clock stands still.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, patch: pytest.MonkeyPatch) -> None:
        super().__init__()
        self._in_threads = 0
        self._run_in_executor = loop.run_in_executor
        self._select = loop._selector.select  # type: ignore[attr-defined]
        patch.setattr(loop, "time", self, raising=True)
        patch.setattr(loop, "run_in_executor", self._counted)
        patch.setattr(loop._selector, "select", self._wait)  # type: ignore[attr-defined]

    def _counted(self, *args: Any) -> asyncio.Future[Any]:
        future = self._run_in_executor(*args)
        self._in_threads += 1
        future.add_done_callback(self._returned)
        return future

    def _returned(self, _: asyncio.Future[Any]) -> None:
        self._in_threads -= 1

    def _wait(self, timeout: float | None = None) -> Any:
        if timeout is None or timeout <= 0:
            return self._select(timeout)
        if self._in_threads:
            return self._select(None)
        events = self._select(0)
        if not events:
            self.now += timeout
        return events
