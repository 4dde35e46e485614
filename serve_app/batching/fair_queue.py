"""Which of the waiting items share the next pass: every caller in turn, as far as time allows.

Pure: time is handed in, in seconds of any clock that does not go backwards.
"""

from __future__ import annotations

import math
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar


@dataclass(slots=True, eq=False, kw_only=True)
class Call:
    """The items of one caller.

    Attributes:
        items: first come, first served among themselves.
        since: when they came.
        until: when the caller's time is over.
        taken: how many of them are in a pass or have been.
    """

    items: Sequence[Any]
    since: float
    until: float = math.inf
    taken: int = 0

    @property
    def waiting(self) -> int:
        return len(self.items) - self.taken


C = TypeVar("C", bound=Call)

Picked = list[tuple[C, int]]
"""Calls and the indices of their items, in the order in which they were picked."""


class FairQueue(Generic[C]):
    """Callers take turns, one item a turn: a thousand items of one do not hold up another's click.

    With ``n`` callers and passes of ``m`` items whoever waits is in one of the next ``n / m``
    passes, rounded up, unless somebody's time asks for smaller ones.
    """

    def __init__(self) -> None:
        self._calls: OrderedDict[C, None] = OrderedDict()  # whose turn it is stands first

    def __len__(self) -> int:
        """Waiting items."""
        return sum(call.waiting for call in self._calls)

    def __bool__(self) -> bool:
        return bool(self._calls)

    def join(self, call: C) -> None:
        """A call with at least one item comes, after all others."""
        self._calls[call] = None

    def leave(self, call: C) -> None:
        """Nothing of this call is wanted any more; it may have left before."""
        self._calls.pop(call, None)

    def oldest_s(self, now: float) -> float:
        """How long the oldest waiting item has waited."""
        return max((now - call.since for call in self._calls), default=0.0)

    def drop_late(self, now: float) -> list[C]:
        """Calls whose time is over leave, and are returned."""
        late = [call for call in self._calls if call.until <= now]
        for call in late:
            self.leave(call)
        return late

    def take(self, most: int, bearable: Callable[[float], int], now: float) -> Picked[C]:
        """Take the items of the next pass.

        Args:
            most: items in a pass at most.
            bearable: the most items of a pass that ends within the seconds given.
            now: the present instant.
        """
        picked = self._in_turn(most)
        if not picked:
            return picked
        urgent = min(picked, key=lambda pick: pick[0].until)
        fits = max(1, bearable(urgent[0].until - now))
        if fits < len(picked):
            # The pass is short for the sake of this one: so it must be in it.
            picked.remove(urgent)
            picked = [urgent, *picked[: fits - 1]]
        for call, _ in picked:
            call.taken += 1
            if call.waiting:
                self._calls.move_to_end(call)
            else:
                del self._calls[call]
        return picked

    def _in_turn(self, most: int) -> Picked[C]:
        picked: Picked[C] = []
        turns = deque((call, call.taken) for call in self._calls)
        while turns and len(picked) < most:
            call, index = turns.popleft()
            picked.append((call, index))
            if index + 1 < len(call.items):
                turns.append((call, index + 1))
        return picked
