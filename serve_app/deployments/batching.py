"""A blocking, batched engine behind an awaitable call for one item.

`serve.batch` is not used: it seals a batch when its wait is over although no pass can begin, so
under load, when batches should be full, each has the few items that came within the wait.  Here
a batch is sealed when its pass begins.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from contextvars import Context
from dataclasses import dataclass
from itertools import islice
from typing import Generic, TypeVar

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


@dataclass(frozen=True, slots=True)
class _Waiting(Generic[I]):
    item: I
    since: float


class Batcher(Generic[I, O]):
    """Collects items of all requests and runs them in the engine's thread, first come first served.

    A pass begins when a slot is free and the batch is full, or its oldest item has waited
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
        self._waiting: dict[asyncio.Future[O], _Waiting[I]] = {}  # in order of arrival
        self._full = asyncio.Event()
        self._running = 0
        self._slots_taken = 0
        self._workers: set[asyncio.Task[None]] = set()  # the loop itself keeps none alive

    async def __call__(self, item: I) -> O:
        """The outcome of one item, run together with whatever else is waiting."""
        now = time.monotonic()
        self.stats.arrived(now)
        future: asyncio.Future[O] = asyncio.get_running_loop().create_future()
        self._waiting[future] = _Waiting(item, now)
        if len(self._waiting) >= self._batching.max_batch_size:
            self._full.set()
        if self._slots_taken < self._batching.max_concurrent_batches:
            self._slots_taken += 1
            # In a context of its own: it works for others than who started it, too.
            worker = asyncio.create_task(self._work(), context=Context())
            self._workers.add(worker)
            worker.add_done_callback(self._workers.discard)
        try:
            return await future
        finally:
            self._waiting.pop(future, None)  # whoever leaves early takes the item along

    def load(self) -> BatcherLoad:
        """What waits and runs now."""
        first = next(iter(self._waiting.values()), None)
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
                await self._fill()
                batch = list(islice(self._waiting.items(), self._batching.max_batch_size))
                for future, _ in batch:
                    del self._waiting[future]
                if len(self._waiting) < self._batching.max_batch_size:
                    self._full.clear()
                if batch:
                    await self._pass(batch)
        finally:
            # At once, not when the task is told to be over: who comes in between would wait.
            self._slots_taken -= 1

    async def _fill(self) -> None:
        first = next(iter(self._waiting.values()))
        left = first.since + self._batching.batch_wait_timeout_s - time.monotonic()
        if left > 0 and not self._full.is_set():
            with suppress(TimeoutError):
                async with asyncio.timeout(left):
                    await self._full.wait()

    async def _pass(self, batch: Sequence[tuple[asyncio.Future[O], _Waiting[I]]]) -> None:
        self._running += len(batch)
        try:
            outcomes = await self._run_all([waited.item for _, waited in batch])
        finally:
            self._running -= len(batch)
        for (future, _), outcome in zip(batch, outcomes, strict=True):
            if future.done():  # its caller has left
                continue
            if isinstance(outcome, Exception):
                future.set_exception(outcome)
            else:
                future.set_result(outcome)

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
