"""The batcher outside a replica: order, size, faults of one item, and what it tells of itself."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serve_app.batching.batcher import Batcher, BatcherLoad
from serve_app.core.errors import DeadlineExceeded, InvalidPrompt
from serve_app.core.settings import Batching

from ..clocks import Clock

BATCHING = Batching(max_batch_size=4, batch_wait_timeout_s=0.02)


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


class Gate:
    """An engine whose passes last until they are let go."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.begun = threading.Semaphore(0)
        self._go = threading.Semaphore(0)

    def run(self, items: Sequence[int]) -> list[int]:
        self.batches.append(list(items))
        self.begun.release()
        assert self._go.acquire(timeout=60)
        return list(items)

    async def wait_until_begun(self) -> None:
        assert await asyncio.to_thread(self.begun.acquire, timeout=60)

    def let_go(self, passes: int = 1) -> None:
        self._go.release(passes)


async def settle() -> None:
    """Let every task that can go on do so."""
    for _ in range(50):
        await asyncio.sleep(0)


async def test_a_batch_is_sealed_when_its_pass_begins() -> None:
    """Those who come while a pass runs share the next one, however far apart they came."""
    gate = Gate()
    batcher = Batcher(gate.run, Batching(max_batch_size=4, batch_wait_timeout_s=0.0))
    callers = [asyncio.create_task(batcher(0))]
    await gate.wait_until_begun()
    for i in range(1, 7):
        callers.append(asyncio.create_task(batcher(i)))
        await settle()
    gate.let_go(3)
    assert await asyncio.gather(*callers) == list(range(7))
    assert gate.batches == [[0], [1, 2, 3, 4], [5, 6]]


async def test_an_idle_engine_waits_for_a_full_batch() -> None:
    gate = Gate()
    batcher = Batcher(gate.run, Batching(max_batch_size=3, batch_wait_timeout_s=3600.0))
    callers = [asyncio.create_task(batcher(i)) for i in range(3)]
    callers[2].cancel()
    await settle()
    assert (batcher.load().waiting, batcher.load().running) == (2, 0)
    assert gate.batches == []
    gate.let_go()
    assert await batcher(3) == 3  # the batch is full: it does not wait for the hour to be over
    assert await asyncio.gather(*callers[:2]) == [0, 1]
    assert gate.batches == [[0, 1, 3]]


async def test_the_wait_for_a_full_batch_ends() -> None:
    batcher = Batcher(Engine().run, Batching(max_batch_size=3, batch_wait_timeout_s=0.01))
    for i in range(2):  # the timer is set anew for the next batch
        assert await asyncio.wait_for(batcher(i), 10) == 2 * i


async def test_passes_run_side_by_side_where_that_is_allowed() -> None:
    gate = Gate()
    batcher = Batcher(gate.run, Batching(max_batch_size=1, max_concurrent_batches=2))
    callers = [asyncio.create_task(batcher(i)) for i in range(3)]
    await gate.wait_until_begun()
    await gate.wait_until_begun()
    await settle()
    assert (batcher.load().waiting, batcher.load().running) == (1, 2)
    gate.let_go(3)
    assert await asyncio.gather(*callers) == [0, 1, 2]


async def test_whoever_comes_when_the_last_pass_ends_is_served() -> None:
    """The worker leaves when nobody waits; nobody may wait for one that has left."""
    batcher = Batcher(Engine().run, Batching(max_batch_size=2, batch_wait_timeout_s=0.0))
    for i in range(200):
        assert await asyncio.wait_for(batcher(i), 60) == 2 * i


async def test_the_load_is_told(clock: Clock) -> None:
    gate = Gate()
    batcher = Batcher(gate.run, Batching(max_batch_size=2, batch_wait_timeout_s=0.0))
    assert batcher.load() == BatcherLoad(0, 0, 0.0)
    callers = [asyncio.create_task(batcher(0))]
    await gate.wait_until_begun()
    callers += [asyncio.create_task(batcher(i)) for i in (1, 2, 3)]
    await settle()
    clock.now += 0.5
    assert batcher.load() == BatcherLoad(3, 1, 0.5)
    assert batcher.report()["oldest_s"] == 0.5
    callers[1].cancel()
    await settle()
    assert batcher.load().waiting == 2  # and who left is not run
    gate.let_go(2)
    await asyncio.gather(*callers, return_exceptions=True)
    assert gate.batches == [[0], [2, 3]]
    assert batcher.load() == BatcherLoad(0, 0, 0.0)
    told = batcher.report()
    assert told["pass_items"] == pytest.approx(1.5)
    assert told["arrivals_per_s"] > 0
    assert all(isinstance(value, float) for value in told.values())


async def test_an_engine_that_loses_items_fails_them_and_hangs_nobody() -> None:
    batcher = Batcher(lambda items: list(items)[1:], BATCHING)
    outcomes = await asyncio.wait_for(
        asyncio.gather(*(batcher(i) for i in range(3)), return_exceptions=True), 60
    )
    assert all(isinstance(outcome, RuntimeError) for outcome in outcomes)
    assert batcher.load() == BatcherLoad(0, 0, 0.0)


async def test_a_callers_items_come_back_in_order_and_no_items_at_once() -> None:
    engine = Engine()
    batcher = Batcher(engine.run, BATCHING)
    assert await batcher.run_all(range(10)) == list(range(0, 20, 2))
    assert [len(batch) for batch in engine.batches] == [4, 4, 2]
    assert await batcher.run_all([]) == []


async def test_one_click_does_not_wait_for_anothers_thousand_points() -> None:
    gate = Gate()
    batcher = Batcher(gate.run, Batching(max_batch_size=4, batch_wait_timeout_s=0.0))
    everything = asyncio.create_task(batcher.run_all(range(1024)))
    await gate.wait_until_begun()
    click = asyncio.create_task(batcher(-1))
    await settle()
    gate.let_go(2)
    assert await asyncio.wait_for(click, 60) == -1
    assert gate.batches[:2] == [[0, 1, 2, 3], [4, -1, 5, 6]]
    gate.let_go(1024)
    assert await everything == list(range(1024))


async def test_once_an_item_failed_the_rest_of_its_caller_is_not_run() -> None:
    engine = Engine(bad=[2])
    batcher = Batcher(engine.run, BATCHING)
    outcomes = await asyncio.gather(batcher.run_all(range(12)), batcher(50), return_exceptions=True)
    assert isinstance(outcomes[0], InvalidPrompt)
    assert outcomes[1] == 100
    assert {item for batch in engine.batches for item in batch} == {0, 1, 2, 50}
    assert batcher.load() == BatcherLoad(0, 0, 0.0)


async def test_an_item_whose_time_is_over_is_in_no_pass(clock: Clock) -> None:
    gate = Gate()
    batcher = Batcher(gate.run, Batching(max_batch_size=4, batch_wait_timeout_s=0.0))
    first = asyncio.create_task(batcher(0))
    await gate.wait_until_begun()
    late = asyncio.create_task(batcher.run_all([1, 2], deadline=clock.now))
    punctual = asyncio.create_task(batcher(3, deadline=clock.now + 60))
    await settle()
    gate.let_go(2)
    with pytest.raises(DeadlineExceeded):
        await late
    assert (await first, await punctual) == (0, 3)
    assert gate.batches == [[0], [3]]


async def test_a_pass_is_short_when_somebody_cannot_wait_for_a_long_one(clock: Clock) -> None:
    gate = Gate()
    batcher = Batcher(gate.run, Batching(max_batch_size=4, batch_wait_timeout_s=0.0))
    batcher._latency.observe(4, 4000.0)  # a thousand seconds an item
    first = asyncio.create_task(batcher(0))
    await gate.wait_until_begun()
    patient = asyncio.create_task(batcher.run_all([1, 2, 3]))
    urgent = asyncio.create_task(batcher(9, deadline=clock.now + 2500))
    await settle()
    gate.let_go(3)
    assert (await first, await urgent, await patient) == (0, 9, [1, 2, 3])
    assert gate.batches == [[0], [9, 1], [2, 3]]
    assert set(batcher._latency._seconds) == {4, 1, 2}  # and it has learnt from them


class Hand:
    """Instead of the engine's thread: passes end when they are told to, in the event loop."""

    def __init__(self) -> None:
        self.under_way: list[asyncio.Future[None]] = []
        self.batches: list[list[int]] = []

    async def run(self, function: object, items: Sequence[int]) -> list[int]:
        self.batches.append(list(items))
        ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.under_way.append(ended)
        await ended
        return list(items)

    def end_one(self) -> None:
        if self.under_way:
            self.under_way.pop(0).set_result(None)


EVENTS = st.lists(
    st.tuples(st.sampled_from(["comes", "comes", "leaves", "ends"]), st.integers(1, 6))
)


@given(EVENTS, st.integers(1, 4), st.integers(1, 2))
@settings(max_examples=60, deadline=None)
def test_whenever_somebody_waits_all_slots_are_busy(
    events: list[tuple[str, int]], most: int, slots: int
) -> None:
    """Work-conserving, however callers come and go; and whoever stays is served, once."""

    async def play() -> None:
        hand = Hand()
        batching = Batching(
            max_batch_size=most, batch_wait_timeout_s=0.0, max_concurrent_batches=slots
        )
        batcher: Batcher[int, int] = Batcher(lambda items: list(items), batching)
        batcher.thread = hand  # type: ignore[assignment]
        callers: dict[asyncio.Task[list[int]], list[int]] = {}
        number, wanted = 0, set[int]()
        for event, n in events:
            if event == "comes":
                items = list(range(number, number + n))
                number += n
                callers[asyncio.create_task(batcher.run_all(items))] = items
                wanted.update(items)
            elif event == "leaves" and callers:
                leaver = list(callers)[n % len(callers)]
                leaver.cancel()
                wanted.difference_update(callers.pop(leaver))
            elif event == "ends":
                hand.end_one()
            await settle()
            assert len(hand.under_way) <= slots
            assert len(hand.under_way) == slots or not batcher.load().waiting
        while hand.under_way:
            hand.end_one()
            await settle()
        for task, items in callers.items():
            assert await asyncio.wait_for(task, 60) == items
        run = [item for batch in hand.batches for item in batch]
        assert len(run) == len(set(run))
        assert wanted <= set(run)
        assert all(len(batch) <= most for batch in hand.batches)

    asyncio.run(play())
