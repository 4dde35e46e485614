"""A blocking, batched engine behind an awaitable call for one item."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, TypeVar

from ray import serve

from serve_app.deployments.replica import EngineThread
from serve_app.domain.settings import Batching

log = logging.getLogger(__name__)

I = TypeVar("I")  # noqa: E741 - an item
O = TypeVar("O")  # noqa: E741 - its outcome


class Batcher(Generic[I, O]):
    """Collects items of all requests over `serve.batch` and runs them in the engine's thread.

    Attributes:
        thread: the engine's; one worker for each batch that may be under way.
    """

    def __init__(self, run: Callable[[Sequence[I]], list[O]], batching: Batching) -> None:
        self._run = run
        self.thread = EngineThread(batching.max_concurrent_batches)
        collect = serve.batch(
            max_batch_size=batching.max_batch_size,
            batch_wait_timeout_s=batching.batch_wait_timeout_s,
            max_concurrent_batches=batching.max_concurrent_batches,
        )

        # serve.batch looks at the function's signature: it must be a plain coroutine function.
        async def collected(items: list[I]) -> list[O | Exception]:
            return await self._run_all(items)

        self._collected: Callable[[I], Awaitable[O | Exception]] = collect(collected)

    async def __call__(self, item: I) -> O:
        """The outcome of one item, run together with whatever else is waiting."""
        outcome = await self._collected(item)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    async def _run_all(self, items: Sequence[I]) -> list[O | Exception]:
        try:
            outcomes: list[O | Exception] = list(await self.thread.run(self._run, items))
        except Exception as exc:
            if len(items) == 1:
                return [exc]
            # One bad item must not fail its neighbours: each is run alone, and fails alone.
            log.exception("a batch of %d failed; its items are run one by one", len(items))
            return [outcome for item in items for outcome in await self._run_all([item])]
        return outcomes
