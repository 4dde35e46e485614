"""Batches over `serve.batch`, outside a replica: order, size, and faults of one item."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence

import numpy as np
import pytest
import ray.serve.batching

from serve_app.deployments.batching import Batcher
from serve_app.domain.errors import InvalidPrompt
from serve_app.domain.settings import Batching

BATCHING = Batching(max_batch_size=4, batch_wait_timeout_s=0.02)


@pytest.fixture(autouse=True)
def _outside_a_replica(monkeypatch: pytest.MonkeyPatch) -> None:
    """All that `serve.batch` wants of its replica is a number to warn about."""
    name = "_warn_if_max_batch_size_exceeds_max_ongoing_requests"
    monkeypatch.setattr(ray.serve.batching._BatchQueue, name, lambda queue: None)


class Engine:
    """Doubles numbers; refuses those it was told to."""

    def __init__(self, bad: Sequence[int] = ()) -> None:
        self.bad = bad
        self.batches: list[list[int]] = []
        self.threads: set[str] = set()

    def run(self, items: Sequence[int]) -> list[int]:
        self.batches.append(list(items))
        self.threads.add(threading.current_thread().name)
        for item in items:
            if item in self.bad:
                raise InvalidPrompt(f"item {item} is bad")
        return [item * 2 for item in items]


async def test_items_share_passes_and_each_gets_its_own() -> None:
    engine = Engine()
    batcher = Batcher(engine.run, BATCHING)
    assert await asyncio.gather(*(batcher(i) for i in range(8))) == list(range(0, 16, 2))
    assert sorted(i for batch in engine.batches for i in batch) == list(range(8))
    assert max(map(len, engine.batches)) == 4
    # Off the event loop, in one thread: an engine is not asked twice at once.
    assert len(engine.threads) == 1
    assert threading.current_thread().name not in engine.threads


async def test_a_bad_item_fails_alone() -> None:
    engine = Engine(bad=[2])
    batcher = Batcher(engine.run, BATCHING)
    outcomes = await asyncio.gather(*(batcher(i) for i in range(4)), return_exceptions=True)
    assert [o for i, o in enumerate(outcomes) if i != 2] == [0, 2, 6]
    assert isinstance(outcomes[2], InvalidPrompt)
    assert outcomes[2].message == "item 2 is bad"
    assert await batcher(5) == 10  # and nothing is broken afterwards


async def test_a_bad_item_that_is_alone_is_run_once() -> None:
    engine = Engine(bad=[7])
    with pytest.raises(InvalidPrompt):
        await Batcher(engine.run, BATCHING)(7)
    assert engine.batches == [[7]]


async def test_a_caller_that_leaves_does_not_disturb_its_neighbours() -> None:
    engine = Engine()
    batcher = Batcher(engine.run, BATCHING)
    callers = [asyncio.create_task(batcher(i)) for i in range(3)]
    await asyncio.sleep(0)
    callers[0].cancel()
    assert await asyncio.gather(*callers[1:]) == [2, 4]
    with pytest.raises(asyncio.CancelledError):
        await callers[0]


async def test_arrays_are_items_like_any_other() -> None:
    def means(images: Sequence[np.ndarray]) -> list[float]:
        return [float(image.mean()) for image in images]

    batcher = Batcher(means, BATCHING)
    images = [np.full((2, 3, 3), i, np.uint8) for i in range(3)]
    assert await asyncio.gather(*(batcher(image) for image in images)) == [0, 1, 2]


async def test_batchers_do_not_mix() -> None:
    one, two = Engine(), Engine()
    first, second = Batcher(one.run, BATCHING), Batcher(two.run, BATCHING)
    await asyncio.gather(first(1), second(2), first(3), second(4))
    assert sorted(i for b in one.batches for i in b) == [1, 3]
    assert sorted(i for b in two.batches for i in b) == [2, 4]
