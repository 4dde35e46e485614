"""A blocking, batched engine behind an awaitable call for one item.

`serve.batch` collects items of all requests, for a short while.  Alone it would also say which
items share a pass, and seal a batch while the engine is still busy, so that under load, when
batches should be full, each had the few items that came within the wait.  So what it collects
joins a queue, and a batch is sealed when its pass begins.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from contextvars import Context
from dataclasses import dataclass
from itertools import islice
from typing import Generic, TypeVar

from ray import serve

from serve_app.deployments.replica import EngineThread
from serve_app.deployments.stats import BatchStats
from serve_app.domain.settings import Batching

log = logging.getLogger(__name__)

I = TypeVar("I")  # noqa: E741 - an item
O = TypeVar("O")  # noqa: E741 - its outcome


@dataclass(frozen=True, slots=True)
class BatcherLoad:
    """Items at one moment.

    Attributes:
        waiting: in no pass yet.
        running: in a pass.
        oldest_s: how long the oldest waiting item has waited.
    """

    waiting: int
    running: int
    oldest_s: float


@dataclass(frozen=True, slots=True, eq=False)
class _Waiting(Generic[I, O]):
    item: I
    since: float
    outcome: asyncio.Future[O]


class Batcher(Generic[I, O]):
    """Collects items of all requests and runs them in the engine's thread, first come first served.

    A pass begins when a slot is free and somebody waits, who was collected for at most
    ``batch_wait_timeout_s``.

    Attributes:
        thread: the engine's; one worker for each batch that may be under way.
        stats: how the engine is used.
    """

    def __init__(self, run: Callable[[Sequence[I]], list[O]], batching: Batching) -> None:
        self._run = run
        self._batching = batching
        slots = batching.max_concurrent_batches
        self.thread = EngineThread(slots)
        self.stats = BatchStats(batching.max_batch_size, slots)
        self._waiting: dict[_Waiting[I, O], None] = {}  # in order of arrival
        self._running = 0
        self._slots_taken = 0
        self._workers: set[asyncio.Task[None]] = set()  # the loop itself keeps none alive
        collect = serve.batch(
            max_batch_size=batching.max_batch_size,
            batch_wait_timeout_s=batching.batch_wait_timeout_s,
        )

        # serve.batch looks at the function's signature: it must be a plain coroutine function.
        async def collected(items: list[_Waiting[I, O]]) -> list[None]:
            self._join(items)
            return [None] * len(items)

        self._collected: Callable[[_Waiting[I, O]], Awaitable[None]] = collect(collected)

    async def __call__(self, item: I) -> O:
        """The outcome of one item, run together with whatever else is waiting."""
        now = time.monotonic()
        self.stats.arrived(now)
        outcome: asyncio.Future[O] = asyncio.get_running_loop().create_future()
        waiting = _Waiting(item, now, outcome)
        try:
            await self._collected(waiting)
            return await outcome
        finally:
            outcome.cancel()
            self._waiting.pop(waiting, None)  # whoever leaves early takes the item along

    def _join(self, items: Sequence[_Waiting[I, O]]) -> None:
        """Items join the queue, and a worker comes if a slot is free."""
        self._waiting.update((item, None) for item in items if not item.outcome.done())
        if self._waiting and self._slots_taken < self._batching.max_concurrent_batches:
            self._slots_taken += 1
            # In a context of its own: it works for others than who started it, too.
            worker = asyncio.create_task(self._work(), context=Context())
            self._workers.add(worker)
            worker.add_done_callback(self._workers.discard)

    def load(self) -> BatcherLoad:
        """What waits and runs now."""
        first = next(iter(self._waiting), None)
        oldest = 0.0 if first is None else time.monotonic() - first.since
        return BatcherLoad(len(self._waiting), self._running, oldest)

    def report(self) -> dict[str, float]:
        """Figures for ``record_autoscaling_stats``: those of `BatchStats`, and the load's."""
        load = self.load()
        return {
            **self.stats.report(time.monotonic()),
            "waiting": float(load.waiting),
            "running": float(load.running),
            "oldest_s": load.oldest_s,
        }

    async def _work(self) -> None:
        """One pass after the other, as long as anybody waits."""
        try:
            while self._waiting:
                batch = list(islice(self._waiting, self._batching.max_batch_size))
                for waiting in batch:
                    del self._waiting[waiting]
                await self._pass(batch)
        finally:
            # At once, not when the task is told to be over: who comes in between would wait.
            self._slots_taken -= 1

    async def _pass(self, batch: Sequence[_Waiting[I, O]]) -> None:
        self._running += len(batch)
        try:
            outcomes = await self._run_all([waiting.item for waiting in batch])
        finally:
            self._running -= len(batch)
        for waiting, outcome in zip(batch, outcomes, strict=True):
            if waiting.outcome.done():  # its caller has left
                continue
            if isinstance(outcome, Exception):
                waiting.outcome.set_exception(outcome)
            else:
                waiting.outcome.set_result(outcome)

    async def _run_all(self, items: Sequence[I]) -> Sequence[O | Exception]:
        try:
            return await self._run_once(items)
        except Exception as exc:
            if len(items) == 1:
                return [exc]
            # One bad item must not fail its neighbours: each is run alone, and fails alone.
            log.exception("a batch of %d failed; its items are run one by one", len(items))
            return [outcome for item in items for outcome in await self._run_all([item])]

    async def _run_once(self, items: Sequence[I]) -> list[O]:
        begun = time.monotonic()
        self.stats.started(begun)
        try:
            outcomes = await self.thread.run(self._run, items)
        finally:
            ended = time.monotonic()
            self.stats.ended(len(items), ended - begun, ended)
        if len(outcomes) != len(items):
            raise RuntimeError(f"{len(items)} items gave {len(outcomes)} outcomes")
        return outcomes
