"""What a replica tells the scaling policy, as running means that forget.

Pure: time is handed in, in seconds of any clock that does not go backwards.  One event loop uses
an object; nothing here is locked.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

FORGET_S = 3.0
"""Time constant: what happened three times as long ago counts a twentieth."""

ARRIVALS_S = 1.0
"""The same for arrivals: shorter, since the policy smooths what it is told."""

_ALMOST_NONE = 1e-3

_LEARN = 0.3
"""Weight of the newest pass of a size."""


class Decaying:
    """A sum in which what was added counts less the older it is."""

    def __init__(self, forget_s: float = FORGET_S) -> None:
        self._forget_s = forget_s
        self._sum = 0.0
        self._at = -math.inf

    def add(self, amount: float, now: float) -> None:
        self._sum = self.at(now) + amount
        self._at = max(now, self._at)

    def at(self, now: float) -> float:
        """The sum now."""
        age = max(0.0, now - self._at)
        return self._sum * math.exp(-age / self._forget_s) if self._sum else 0.0

    def per_s(self, now: float) -> float:
        """Added in a second, while it goes on as it did."""
        return self.at(now) / self._forget_s


class Level:
    """The mean of a number that changes in steps, of the last seconds."""

    def __init__(self) -> None:
        self._mean = 0.0
        self._level = 0.0
        self._at: float | None = None

    def set(self, level: float, now: float) -> None:
        self._mean = self.at(now)
        self._level, self._at = level, now

    def at(self, now: float) -> float:
        if self._at is None:
            return 0.0
        weight = math.exp(-max(0.0, now - self._at) / FORGET_S)
        return self._level + (self._mean - self._level) * weight


class BatchStats:
    """How a batched engine is used.

    Args:
        max_batch: items in one pass at most.
        slots: passes that may be under way at once.
    """

    def __init__(self, max_batch: int, slots: int) -> None:
        self._max_batch = max_batch
        self._slots = slots
        self._arrivals = Decaying(ARRIVALS_S)
        self._passes = Decaying()
        self._items = Decaying()
        self._pass_s = Decaying()
        self._busy = Level()
        self._under_way = 0
        # Of the last passes, however long ago: a quiet service must not forget what it can do.
        self._usual: tuple[float, float] | None = None

    def arrived(self, now: float, items: int = 1) -> None:
        """Items came in."""
        self._arrivals.add(float(items), now)

    def started(self, now: float) -> None:
        """A pass began."""
        self._under_way += 1
        self._busy.set(self._under_way, now)

    def ended(self, items: int, seconds: float, now: float) -> None:
        """A pass is over."""
        self._under_way -= 1
        self._busy.set(self._under_way, now)
        self._passes.add(1.0, now)
        self._items.add(items, now)
        self._pass_s.add(seconds, now)
        passes = self._passes.at(now)
        self._usual = self._items.at(now) / passes, self._pass_s.at(now) / passes

    def report(self, now: float) -> dict[str, float]:
        """Figures for ``record_autoscaling_stats``; what is not known yet is left out.

        ``arrivals_per_s`` in items; ``busy`` and ``batch_fill`` are shares (0-1), the latter 0
        after some quiet seconds; ``pass_ms`` is the mean time of the last passes, which had
        ``pass_items`` on average.
        """
        passes = self._passes.at(now)
        recent = passes > _ALMOST_NONE
        found = {
            "arrivals_per_s": self._arrivals.per_s(now),
            "busy": self._busy.at(now) / self._slots,
            "batch_fill": self._items.at(now) / passes / self._max_batch if recent else 0.0,
        }
        if self._usual is not None:
            found["pass_items"], seconds = self._usual
            found["pass_ms"] = seconds * 1e3
        return finite(found)


class PassTimes:
    """How long passes take by their number of items, as the last ones went."""

    def __init__(self) -> None:
        self._seconds: dict[int, float] = {}

    def ended(self, items: int, seconds: float) -> None:
        """A pass is over."""
        usual = self._seconds.get(items, seconds)
        self._seconds[items] = usual + _LEARN * (seconds - usual)

    def items_within(self, seconds: float, most: int) -> int:
        """How many items, up to ``most``, a pass can have that ends within ``seconds``.

        Where even a single item takes longer, it is too late to hurry: ``most``.  Between sizes
        that were tried time is a straight line; beyond them the largest tried counts, until a
        larger one has been: a guess that forbade it would never be corrected.
        """
        if not self._seconds or seconds >= max(self._seconds.values()):
            return most
        sizes = sorted(self._seconds)
        known = [self._seconds[size] for size in sizes]
        expected = np.interp(np.arange(1, most + 1), [0, *sizes], [0.0, *known])
        fitting = int(np.argmax(np.append(expected, math.inf) > seconds))
        return fitting or most


class HitRate:
    """The share of looked-up images whose embedding was at hand."""

    def __init__(self) -> None:
        self._hits = Decaying(3 * FORGET_S)
        self._lookups = Decaying(3 * FORGET_S)

    def looked_up(self, hit: bool, now: float) -> None:
        self._lookups.add(1.0, now)
        self._hits.add(float(hit), now)

    def report(self, now: float) -> dict[str, float]:
        """``hit_rate`` (0-1) and ``lookups_per_s``; no rate where nothing was looked up lately."""
        lookups = self._lookups.at(now)
        found = {"lookups_per_s": self._lookups.per_s(now)}
        if lookups > _ALMOST_NONE:
            found["hit_rate"] = self._hits.at(now) / lookups
        return finite(found)


def finite(figures: Mapping[str, float]) -> dict[str, float]:
    """Floats that are numbers: Ray passes on whatever a replica tells."""
    return {name: float(value) for name, value in figures.items() if math.isfinite(value)}
