"""Chooses which waiting items share the next batch: round robin over callers, within deadlines.

Pure: callers pass the time, in seconds of any monotonic clock.
"""

from __future__ import annotations

import math
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar


@dataclass(slots=True, eq=False, kw_only=True)
class Call:
    """The items of one caller, which are run in order."""

    items: Sequence[Any]
    enqueued_at: float
    deadline: float = math.inf  # when the caller stops waiting
    started: int = 0  # items that are or were in a batch

    @property
    def waiting(self) -> int:
        """Number of items in no batch yet."""
        return len(self.items) - self.started


C = TypeVar("C", bound=Call)

Batch = list[tuple[C, int]]
"""Pairs of a call and the index of one of its items."""


class FairQueue(Generic[C]):
    """Round robin over callers, one item per turn: a large request does not delay a small one.

    With ``n`` callers and batches of ``m`` items, each caller is in one of the next
    ``ceil(n / m)`` batches, unless a deadline requires smaller ones.
    """

    def __init__(self) -> None:
        self._calls: OrderedDict[C, None] = OrderedDict()  # the next turn is first

    def __len__(self) -> int:
        """Number of waiting items."""
        return sum(call.waiting for call in self._calls)

    def __bool__(self) -> bool:
        return bool(self._calls)

    def enqueue(self, call: C) -> None:
        """Add a call with at least one item, after all others."""
        self._calls[call] = None

    def remove(self, call: C) -> None:
        """Drop the waiting items of a call; no error if it is not in the queue."""
        self._calls.pop(call, None)

    def oldest_s(self, now: float) -> float:
        """Age of the oldest waiting item."""
        return max((now - call.enqueued_at for call in self._calls), default=0.0)

    def remove_expired(self, now: float) -> list[C]:
        """Remove and return the expired calls."""
        expired = [call for call in self._calls if call.deadline <= now]
        for call in expired:
            self.remove(call)
        return expired

    def next_batch(
        self, max_items: int, items_within: Callable[[float], int], now: float
    ) -> Batch[C]:
        """Take at most ``max_items`` items for the next batch.

        ``items_within`` gives the largest batch that ends within a number of seconds.
        """
        picked = self._round_robin(max_items)
        if not picked:
            return picked
        urgent = min(picked, key=lambda pick: pick[0].deadline)
        fits = max(1, items_within(urgent[0].deadline - now))
        if fits < len(picked):
            # The batch is small for the sake of the urgent item, so that must be in it.
            picked.remove(urgent)
            picked = [urgent, *picked[: fits - 1]]
        for call, _ in picked:
            call.started += 1
            if call.waiting:
                self._calls.move_to_end(call)
            else:
                del self._calls[call]
        return picked

    def _round_robin(self, max_items: int) -> Batch[C]:
        picked: Batch[C] = []
        turns = deque((call, call.started) for call in self._calls)
        while turns and len(picked) < max_items:
            call, index = turns.popleft()
            picked.append((call, index))
            if index + 1 < len(call.items):
                turns.append((call, index + 1))
        return picked
