"""Puts a blocking, batched engine behind an awaitable call.

A batch is formed when its forward pass begins, not when its items arrive: while a pass runs, new
items wait in the queue, so under load batches are full.  Only an idle engine waits
``batch_wait_timeout_s`` for more items after the first one.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextvars import Context
from dataclasses import dataclass
from typing import Generic, TypeVar, cast

from serve_app.batching.engine_thread import EngineThread
from serve_app.batching.fair_queue import Batch, Call, FairQueue
from serve_app.batching.stats import BatchLatencyModel, BatchStats
from serve_app.core.errors import DeadlineExceeded
from serve_app.core.settings import Batching
from serve_app.telemetry.context import TracePosition, current_trace, record_span
from serve_app.telemetry.metrics import BATCH_FILL, BATCH_ITEMS, QUEUE_AGE, QUEUE_ITEMS

log = logging.getLogger(__name__)

I = TypeVar("I")  # noqa: E741 - an item
O = TypeVar("O")  # noqa: E741 - its output


@dataclass(frozen=True, slots=True)
class BatcherLoad:
    """Numbers of items in no pass yet and in a pass, and seconds that the oldest one has waited."""

    waiting: int
    running: int
    oldest_s: float


@dataclass(slots=True, eq=False, kw_only=True)
class _PendingCall(Call, Generic[O]):
    """A call and its result: the outputs of all its items, or the first error."""

    result: asyncio.Future[list[O]]
    outputs: list[O | None]
    missing: int  # items without an output
    span: TracePosition  # parent of its trace spans

    def resolve(self, index: int, output: O | Exception) -> None:
        """Store the output of one item, or fail the call."""
        if self.result.done():  # cancelled, or another item failed
            return
        if isinstance(output, Exception):
            self.result.set_exception(output)
            return
        self.outputs[index] = output
        self.missing -= 1
        if self.missing == 0:
            self.result.set_result(cast("list[O]", self.outputs))


class Batcher(Generic[I, O]):
    """Runs the items of all callers in the engine's thread, fairly interleaved.

    Expired items are never run, and a batch is no larger than its most urgent item allows, as
    far as pass times are known.

    Args:
        engine: Blocking function that returns one output per item.
        queue: Name of the items in metrics.
    """

    def __init__(
        self, engine: Callable[[Sequence[I]], list[O]], batching: Batching, queue: str = "items"
    ) -> None:
        self._engine = engine
        self._name = queue
        self._batching = batching
        self.thread = EngineThread(batching.max_concurrent_batches)
        self._stats = BatchStats(batching.max_batch_size)
        self._latency = BatchLatencyModel()
        self._queue: FairQueue[_PendingCall[O]] = FairQueue()
        self._running = 0
        self._slots_taken = 0
        self._timer: asyncio.TimerHandle | None = None
        self._workers: set[asyncio.Task[None]] = set()  # the event loop keeps no strong reference

    async def __call__(self, item: I, deadline: float = math.inf) -> O:
        """Run one item; see `run_all`."""
        (output,) = await self.run_all([item], deadline)
        return output

    async def run_all(self, items: Sequence[I], deadline: float = math.inf) -> list[O]:
        """Run the items of one caller, batched with those of other callers.

        Args:
            items: After the first item that fails, the others are not run.
            deadline: When the caller stops waiting, on the clock of ``time.monotonic``.

        Returns:
            One output per item, in order.

        Raises:
            DeadlineExceeded: The deadline passed before the last pass began.
            Exception: Whatever the engine raised for the first item that failed.
        """
        if not items:
            return []
        now = time.monotonic()
        self._stats.arrived(now, len(items))
        call: _PendingCall[O] = _PendingCall(
            items=items,
            enqueued_at=now,
            deadline=deadline,
            result=asyncio.get_running_loop().create_future(),
            outputs=[None] * len(items),
            missing=len(items),
            span=current_trace(),
        )
        try:
            self._enqueue(call)
            return await call.result
        finally:
            call.result.cancel()
            self._queue.remove(call)  # a cancelled caller's items are not run

    def load(self) -> BatcherLoad:
        """Items that wait and run now."""
        oldest_s = self._queue.oldest_s(time.monotonic())
        return BatcherLoad(len(self._queue), self._running, oldest_s)

    def report(self) -> dict[str, float]:
        """Statistics for ``record_autoscaling_stats``: `BatchStats.report`, and ``oldest_s``.

        Serve polls this at an interval, also while idle, so gauges are updated here.
        """
        load, stats = self.load(), self._stats.report(time.monotonic())
        QUEUE_ITEMS.set(load.waiting, queue=self._name)
        QUEUE_AGE.set(load.oldest_s, queue=self._name)
        BATCH_FILL.set(stats["batch_fill"], queue=self._name)
        return {**stats, "oldest_s": load.oldest_s}

    @property
    def _slots_free(self) -> int:
        return self._batching.max_concurrent_batches - self._slots_taken

    def _enqueue(self, call: _PendingCall[O]) -> None:
        """Queue a call; start workers when a batch is full or the wait for more items is over."""
        self._queue.enqueue(call)
        if not self._slots_free:
            return  # a worker takes it after its current pass
        if len(self._queue) >= self._batching.max_batch_size:
            self._start_workers()
        elif self._timer is None:
            loop, wait_s = asyncio.get_running_loop(), self._batching.batch_wait_timeout_s
            self._timer = loop.call_later(wait_s, self._start_workers, context=Context())

    def _start_workers(self) -> None:
        """Start a worker for each waiting batch that has a free slot."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        batches = math.ceil(len(self._queue) / self._batching.max_batch_size)
        for _ in range(min(batches, self._slots_free)):
            self._slots_taken += 1
            # An empty context: a worker serves other callers than the one that started it.
            worker = asyncio.create_task(self._work(), context=Context())
            self._workers.add(worker)
            worker.add_done_callback(self._workers.discard)

    async def _work(self) -> None:
        """Run batches until the queue is empty."""
        try:
            while batch := self._next_batch():
                await self._run_batch(batch)
        finally:
            # Here, not in a done callback: a call in between would find no free slot and no worker.
            self._slots_taken -= 1

    def _next_batch(self) -> Batch[_PendingCall[O]]:
        """Fail expired calls, and pick the items of the pass that begins now."""
        now, limit = time.monotonic(), self._batching.max_batch_size
        for call in self._queue.remove_expired(now):
            if not call.result.done():
                call.result.set_exception(
                    DeadlineExceeded("the deadline passed before processing began")
                )
        return self._queue.next_batch(
            limit, lambda left_s: self._latency.items_within(left_s, limit), now
        )

    async def _run_batch(self, batch: Batch[_PendingCall[O]]) -> None:
        self._running += len(batch)
        began = time.monotonic()
        traced = Counter(call for call, _ in batch if call.span is not None)
        for call, items in traced.items():
            if call.started == items:  # its first pass
                record_span("wait", call.span, call.enqueued_at, began, items=len(call.items))
        try:
            outputs = await self._run_isolated([call.items[index] for call, index in batch])
        finally:
            self._running -= len(batch)
            for call, items in traced.items():
                record_span("pass", call.span, began, time.monotonic(), items=items)
        for (call, index), output in zip(batch, outputs, strict=True):
            call.resolve(index, output)
            if call.result.done():
                self._queue.remove(call)

    async def _run_isolated(self, items: Sequence[I]) -> Sequence[O | Exception]:
        """Run a batch; if it fails, run its items one by one so that only bad ones fail."""
        try:
            return await self._run_pass(items)
        except Exception as exc:
            if len(items) == 1:
                return [exc]
            log.exception("a batch of %d items failed; running them one by one", len(items))
            return [output for item in items for output in await self._run_isolated([item])]

    async def _run_pass(self, items: Sequence[I]) -> list[O]:
        began = time.monotonic()
        try:
            outputs = await self.thread.run(self._engine, items)
        finally:
            ended = time.monotonic()
            self._stats.ended(len(items), ended - began, ended)
            BATCH_ITEMS.observe(len(items), queue=self._name)
        # Failed passes are left out: their times say nothing about successful ones.
        self._latency.observe(len(items), ended - began)
        if len(outputs) != len(items):
            raise RuntimeError(f"the engine returned {len(outputs)} outputs for {len(items)} items")
        return outputs
