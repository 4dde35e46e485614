"""Concurrent calls for one key share one computation."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

from serve_app.telemetry.context import shared_context

V = TypeVar("V")


class SingleFlight(Generic[V]):
    """Runs at most one computation per key at a time; all its callers get the result.

    Cancelling one caller does not affect the others.  The computation is cancelled when its last
    caller is cancelled.
    """

    def __init__(self) -> None:
        self._tasks: dict[str, asyncio.Task[V]] = {}
        self._waiting: dict[str, int] = {}

    async def run(self, key: str, compute: Callable[[], Awaitable[V]]) -> V:
        """Return the result of ``compute`` for this key; joins a running computation."""
        task = self._tasks.get(key)
        if task is None:
            # In a context of its own: in that of the first caller's request, Ray Serve would
            # cancel the computation's remote calls together with that request.
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
            # Mark the exception as retrieved: all callers may have been cancelled.
            task.exception()
