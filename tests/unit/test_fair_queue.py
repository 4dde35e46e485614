"""Who shares a pass: callers take turns, and time bounds a pass.  Time here is a number."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve_app.batching.fair_queue import Batch, Call, FairQueue
from serve_app.batching.stats import BatchLatencyModel


def call(items: int, name: str = "", enqueued_at: float = 0.0, deadline: float = math.inf) -> Call:
    return Call(
        items=[f"{name}{i}" for i in range(items)], enqueued_at=enqueued_at, deadline=deadline
    )


def anything(seconds: float) -> int:
    return 10**6


def names(picked: Batch[Call]) -> list[str]:
    return [of.items[index] for of, index in picked]


def test_callers_take_turns_and_a_callers_items_go_in_order() -> None:
    queue: FairQueue[Call] = FairQueue()
    for of in (call(5, "a"), call(1, "b"), call(2, "c")):
        queue.enqueue(of)
    assert len(queue) == 8
    assert names(queue.next_batch(4, anything, 0.0)) == ["a0", "b0", "c0", "a1"]
    # Whose turn came last waits longest for the next.
    queue.enqueue(call(1, "d"))
    assert names(queue.next_batch(2, anything, 0.0)) == ["c1", "a2"]
    assert names(queue.next_batch(9, anything, 0.0)) == ["d0", "a3", "a4"]
    assert not queue
    assert queue.next_batch(4, anything, 0.0) == []


def test_one_click_beside_a_thousand_points_is_in_the_next_pass() -> None:
    queue: FairQueue[Call] = FairQueue()
    queue.enqueue(call(1024, "grid"))
    queue.next_batch(32, anything, 0.0)
    queue.enqueue(call(1, "click"))
    assert "click0" in names(queue.next_batch(32, anything, 0.0))


def test_whose_time_is_over_leaves() -> None:
    queue: FairQueue[Call] = FairQueue()
    late, punctual = call(3, "late", deadline=1.0), call(1, "punctual", deadline=1.5)
    queue.enqueue(late)
    queue.enqueue(punctual)
    assert queue.remove_expired(0.9) == []
    assert queue.remove_expired(1.0) == [late]
    assert names(queue.next_batch(4, anything, 1.0)) == ["punctual0"]


def test_a_pass_is_as_short_as_its_most_urgent_item_needs() -> None:
    queue: FairQueue[Call] = FairQueue()
    for of in (call(5, "a"), call(2, "urgent", deadline=2.0), call(1, "b", deadline=3.0)):
        queue.enqueue(of)
    # Two seconds hold two items: the urgent one is among them, and whose turn it is.
    assert names(queue.next_batch(8, int, 0.0)) == ["urgent0", "a0"]
    assert names(queue.next_batch(8, int, 0.0)) == ["urgent1", "b0"]
    assert names(queue.next_batch(8, anything, 0.0)) == ["a1", "a2", "a3", "a4"]


def test_the_oldest_waits_longest() -> None:
    queue: FairQueue[Call] = FairQueue()
    assert queue.oldest_s(5.0) == 0
    first, second = call(2, enqueued_at=1.0), call(1, enqueued_at=3.0)
    queue.enqueue(first)
    queue.enqueue(second)
    queue.next_batch(1, anything, 4.0)
    assert queue.oldest_s(5.0) == 4
    queue.remove(first)
    queue.remove(first)  # as often as one likes
    assert (queue.oldest_s(5.0), len(queue)) == (2, 1)


@st.composite
def histories(draw: st.DrawFn) -> list[int | None]:
    """Calls that join, by their number of items, and passes (None)."""
    return draw(st.lists(st.one_of(st.none(), st.integers(1, 20)), max_size=40))


@pytest.mark.slow
@given(histories(), st.integers(1, 8))
def test_everybody_is_served_once_in_order_and_soon(history: list[int | None], most: int) -> None:
    queue: FairQueue[Call] = FairQueue()
    calls: list[Call] = []
    served: dict[int, list[int]] = {}
    owed: dict[int, int] = {}  # passes until the call's next item must have been served

    def one_pass() -> None:
        waiting = len(queue)
        picked = queue.next_batch(most, anything, 0.0)
        assert len(picked) == min(most, waiting)  # never less than there is room for
        for of, index in picked:
            served.setdefault(id(of), []).append(index)
        taken = {id(of) for of, _ in picked}
        rivals = sum(1 for of in calls if of.waiting)
        for of in calls:
            if id(of) in taken:
                owed[id(of)] = -(-rivals // most)
            elif of.waiting:
                owed[id(of)] -= 1
                assert owed[id(of)] > 0

    for event in history:
        if event is None:
            one_pass()
            continue
        calls.append(call(event))
        queue.enqueue(calls[-1])
        rivals = sum(1 for of in calls if of.waiting)
        owed[id(calls[-1])] = -(-rivals // most)
    while queue:
        one_pass()
    assert all(served[id(of)] == list(range(len(of.items))) for of in calls)


def test_pass_times_bound_a_pass() -> None:
    times = BatchLatencyModel()
    assert times.items_within(0.1, 32) == 32  # nothing is known
    times.observe(8, 0.8)
    assert times.items_within(0.8, 32) == 32  # beyond what was tried nothing is forbidden
    assert times.items_within(0.41, 32) == 4
    times.observe(1, 0.5)
    assert times.items_within(0.55, 32) == 2
    assert times.items_within(0.4, 32) == 32  # too late for any hurry


def test_pass_times_are_those_of_late() -> None:
    times = BatchLatencyModel()
    times.observe(4, 10.0)
    for _ in range(30):
        times.observe(4, 1.0)
    assert times.items_within(1.1, 4) == 4
    assert times.items_within(0.8, 4) == 3
