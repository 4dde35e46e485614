"""A blocking engine's thread, and whether it makes progress."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TypeVar

T = TypeVar("T")


class EngineThread:
    """Runs a blocking engine beside the replica's event loop, which stays free meanwhile."""

    def __init__(self, workers: int = 1) -> None:
        self._pool = ThreadPoolExecutor(max_workers=workers, thread_name_prefix="engine")
        self._began: dict[object, float] = {}  # of what runs; its own keys, since work may be equal
        self._failed = False

    async def run(self, function: Callable[..., T], *args: object) -> T:
        """Run a function in the thread, after what is queued there."""
        work = partial(self._timed, function, *args)
        return await asyncio.get_running_loop().run_in_executor(self._pool, work)

    def _timed(self, function: Callable[..., T], *args: object) -> T:
        key = object()
        self._began[key] = time.monotonic()
        try:
            done = function(*args)
        except Exception:
            self._failed = True
            raise
        else:
            self._failed = False
            return done
        finally:
            del self._began[key]

    async def check(self, max_pass_s: float, probe: Callable[[], None]) -> None:
        """Returns if the engine gets on with its work; that there is much of it is no fault.

        Args:
            probe: run if the engine has nothing to do, or has just failed; raises what is wrong.

        Raises:
            EngineStuck: it has been at one piece of work for longer than ``max_pass_s``.
        """
        began = min(list(self._began.values()), default=None)
        if began is None:
            await self.run(probe)
        elif time.monotonic() - began > max_pass_s:
            raise EngineStuck(f"an engine has been in one pass for more than {max_pass_s:g} s")
        elif self._failed:
            # Not after what waits: an engine that fails at once is hardly ever seen idle.
            await asyncio.to_thread(probe)


class EngineStuck(RuntimeError):
    """The engine does not come back from a pass."""
