"""Concurrent calls for one key share one computation."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

from serve_app.telemetry.context import shared_context

V = TypeVar("V")


class SingleFlight(Generic[V]):
    """Runs at most one computation a key at a time; all callers get its outcome.

    A caller that is cancelled leaves the others unharmed.  The computation is cancelled when
    its last caller has left.
    """

    def __init__(self) -> None:
        self._tasks: dict[str, asyncio.Task[V]] = {}
        self._waiting: dict[str, int] = {}

    async def run(self, key: str, compute: Callable[[], Awaitable[V]]) -> V:
        """The outcome of ``compute`` for this key, run by this call or joined."""
        task = self._tasks.get(key)
        if task is None:
            # In a context of its own: the computation is nobody's alone.  In the context of the
            # first caller's request Ray Serve would cancel its remote calls with that request.
            task = asyncio.create_task(self._call(compute), context=shared_context())
            self._tasks[key] = task
            self._waiting[key] = 0
            task.add_done_callback(lambda done: self._forget(key, done))
        self._waiting[key] += 1
        try:
            return await asyncio.shield(task)
        finally:
            if self._tasks.get(key) is task:
                self._waiting[key] -= 1
                if self._waiting[key] == 0 and not task.done():
                    self._forget(key, task)
                    task.cancel()

    @staticmethod
    async def _call(compute: Callable[[], Awaitable[V]]) -> V:
        return await compute()

    def _forget(self, key: str, task: asyncio.Task[V]) -> None:
        if self._tasks.get(key) is task:
            del self._tasks[key], self._waiting[key]
        if task.done() and not task.cancelled():
            # Every caller may have left; an outcome nobody awaits is no fault of the loop's.
            task.exception()
