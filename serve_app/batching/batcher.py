"""A blocking, batched engine behind an awaitable call.

`serve.batch` collects what callers want, for a short while.  Alone it would also say which items
share a pass, and seal a batch while the engine is still busy, so that under load, when batches
should be full, each had the few items that came within the wait.  So what it collects joins a
queue, and a batch is sealed when its pass begins.  While passes run there is nothing to collect
for: whoever comes joins the queue at once.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from contextvars import Context
from dataclasses import dataclass
from typing import Generic, TypeVar, cast

from ray import serve

from serve_app.batching.engine_thread import EngineThread
from serve_app.batching.fair_queue import Call, FairQueue, Picked
from serve_app.batching.stats import BatchStats, PassTimes
from serve_app.core.errors import DeadlineExceeded
from serve_app.core.settings import Batching
from serve_app.telemetry.context import TracePosition, current_trace, record_span
from serve_app.telemetry.metrics import BATCH_FILL, BATCH_ITEMS, QUEUE_AGE, QUEUE_ITEMS

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


@dataclass(slots=True, eq=False, kw_only=True)
class _Call(Call, Generic[O]):
    """A call with what its caller awaits: the outcomes of all its items, or the first fault."""

    outcome: asyncio.Future[list[O]]
    outcomes: list[O | None]
    missing: int
    span: TracePosition

    def settle(self, index: int, outcome: O | Exception) -> None:
        if self.outcome.done():  # its caller has left, or another of its items failed
            return
        if isinstance(outcome, Exception):
            self.outcome.set_exception(outcome)
            return
        self.outcomes[index] = outcome
        self.missing -= 1
        if self.missing == 0:
            self.outcome.set_result(cast("list[O]", self.outcomes))


class Batcher(Generic[I, O]):
    """Collects items of all callers and runs them in the engine's thread, each caller in turn.

    A pass begins when a slot is free and somebody waits, who was collected for at most
    ``batch_wait_timeout_s``.  Items whose caller's time is over are in no pass, and a pass has no
    more items than the most urgent of them can bear, as far as that is known.

    Args:
        run: the engine; gives as many outcomes as it gets items.
        batching: how items are collected.
        queue: what the items are, for the metrics.

    Attributes:
        thread: the engine's; one worker for each batch that may be under way.
        stats: how the engine is used.
    """

    def __init__(
        self, run: Callable[[Sequence[I]], list[O]], batching: Batching, queue: str = "items"
    ) -> None:
        self._run = run
        self._name = queue
        self._batching = batching
        slots = batching.max_concurrent_batches
        self.thread = EngineThread(slots)
        self.stats = BatchStats(batching.max_batch_size, slots)
        self._times = PassTimes()
        self._queue: FairQueue[_Call[O]] = FairQueue()
        self._running = 0
        self._slots_taken = 0
        self._workers: set[asyncio.Task[None]] = set()  # the loop itself keeps none alive
        collect = serve.batch(
            max_batch_size=batching.max_batch_size,
            batch_wait_timeout_s=batching.batch_wait_timeout_s,
        )

        # serve.batch looks at the function's signature: it must be a plain coroutine function.
        async def collected(calls: list[_Call[O]]) -> list[None]:
            self._join(calls)
            return [None] * len(calls)

        self._collected: Callable[[_Call[O]], Awaitable[None]] = collect(collected)

    async def __call__(self, item: I, until: float = math.inf) -> O:
        """The outcome of one item; see `all`."""
        (outcome,) = await self.all([item], until)
        return outcome

    async def all(self, items: Sequence[I], until: float = math.inf) -> list[O]:
        """The outcomes of a caller's items, run together with whatever else is waiting.

        Args:
            items: none of them is run again or any more once one has failed.
            until: when the caller's time is over, as an instant of ``time.monotonic``.

        Raises:
            DeadlineExceeded: it was over before the last of their passes began.
            Exception: what the engine raised on the first item that failed.
        """
        if not items:
            return []
        now = time.monotonic()
        self.stats.arrived(now, len(items))
        call: _Call[O] = _Call(
            items=items,
            since=now,
            until=until,
            outcome=asyncio.get_running_loop().create_future(),
            outcomes=[None] * len(items),
            missing=len(items),
            span=current_trace(),
        )
        try:
            if self._slots_free and len(items) < self._batching.max_batch_size:
                await self._collected(call)
            else:
                self._join([call])
            return await call.outcome
        finally:
            call.outcome.cancel()
            self._queue.leave(call)  # whoever leaves early takes the items along

    @property
    def _slots_free(self) -> int:
        return self._batching.max_concurrent_batches - self._slots_taken

    def _join(self, calls: Sequence[_Call[O]]) -> None:
        """Calls join the queue, and workers come for the batches that have a slot."""
        for call in calls:
            if not call.outcome.done():
                self._queue.join(call)
        batches = math.ceil(len(self._queue) / self._batching.max_batch_size)
        for _ in range(min(batches, self._slots_free)):
            self._slots_taken += 1
            # In a context of its own: it works for others than who started it, too.
            worker = asyncio.create_task(self._work(), context=Context())
            self._workers.add(worker)
            worker.add_done_callback(self._workers.discard)

    def load(self) -> BatcherLoad:
        """What waits and runs now."""
        oldest_s = self._queue.oldest_s(time.monotonic())
        return BatcherLoad(len(self._queue), self._running, oldest_s)

    def report(self) -> dict[str, float]:
        """Figures for ``record_autoscaling_stats``: those of `BatchStats`, and the load's.

        Serve asks every now and then, also while nothing happens: so gauges are told here.
        """
        load, stats = self.load(), self.stats.report(time.monotonic())
        QUEUE_ITEMS.set(load.waiting, queue=self._name)
        QUEUE_AGE.set(load.oldest_s, queue=self._name)
        BATCH_FILL.set(stats["batch_fill"], queue=self._name)
        return {
            **stats,
            "waiting": float(load.waiting),
            "running": float(load.running),
            "oldest_s": load.oldest_s,
        }

    async def _work(self) -> None:
        """One pass after the other, as long as anybody waits."""
        try:
            while batch := self._seal():
                await self._pass(batch)
        finally:
            # At once, not when the task is told to be over: who comes in between would wait.
            self._slots_taken -= 1

    def _seal(self) -> Picked[_Call[O]]:
        """The items of the pass that begins now."""
        now, most = time.monotonic(), self._batching.max_batch_size
        for call in self._queue.drop_late(now):
            if not call.outcome.done():
                call.outcome.set_exception(
                    DeadlineExceeded("the request's time was over before its turn came")
                )
        return self._queue.take(most, lambda left_s: self._times.items_within(left_s, most), now)

    async def _pass(self, batch: Picked[_Call[O]]) -> None:
        self._running += len(batch)
        began = time.monotonic()
        traced = Counter(call for call, _ in batch if call.span is not None)
        for call, items in traced.items():
            if call.taken == items:  # its first pass
                record_span("wait", call.span, call.since, began, items=len(call.items))
        try:
            outcomes = await self._run_all([call.items[index] for call, index in batch])
        finally:
            self._running -= len(batch)
            for call, items in traced.items():
                record_span("pass", call.span, began, time.monotonic(), items=items)
        for (call, index), outcome in zip(batch, outcomes, strict=True):
            call.settle(index, outcome)
            if call.outcome.done():
                self._queue.leave(call)

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
            BATCH_ITEMS.observe(len(items), queue=self._name)
        # One that failed says nothing of how long such passes take.
        self._times.ended(len(items), ended - begun)
        if len(outcomes) != len(items):
            raise RuntimeError(f"{len(items)} items gave {len(outcomes)} outcomes")
        return outcomes
