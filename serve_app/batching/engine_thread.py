"""Threads in which a blocking engine runs, and a check that it makes progress."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TypeVar

T = TypeVar("T")


class EngineThread:
    """Runs a blocking engine off the replica's event loop."""

    def __init__(self, workers: int = 1) -> None:
        self._pool = ThreadPoolExecutor(max_workers=workers, thread_name_prefix="engine")
        self._began: dict[object, float] = {}  # start times of running calls, by a unique key
        self._failed = False

    async def run(self, function: Callable[..., T], *args: object) -> T:
        """Run a function in the thread pool, after the calls already queued there."""
        work = partial(self._timed, function, *args)
        return await asyncio.get_running_loop().run_in_executor(self._pool, work)

    def _timed(self, function: Callable[..., T], *args: object) -> T:
        key = object()
        self._began[key] = time.monotonic()
        try:
            result = function(*args)
        except Exception:
            self._failed = True
            raise
        else:
            self._failed = False
            return result
        finally:
            del self._began[key]

    async def check(self, max_pass_s: float, probe: Callable[[], None]) -> None:
        """Return if the engine is healthy; a long queue is healthy, a hanging pass is not.

        Args:
            max_pass_s: Longest time for one pass, in seconds.
            probe: Called if the engine is idle or its last pass failed; raises if the device
                is broken.

        Raises:
            EngineStuck: A pass has run for longer than ``max_pass_s``.
        """
        began = min(list(self._began.values()), default=None)
        if began is None:
            await self.run(probe)
        elif time.monotonic() - began > max_pass_s:
            raise EngineStuck(f"a pass has run for more than {max_pass_s:g} s")
        elif self._failed:
            # Not behind the queue: an engine that fails immediately is hardly ever seen idle.
            await asyncio.to_thread(probe)


class EngineStuck(RuntimeError):
    """A forward pass hangs."""
