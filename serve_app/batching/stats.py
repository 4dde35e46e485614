"""Exponentially weighted statistics that a replica reports to the scaling policy.

Pure: callers pass the time, in seconds of any monotonic clock.  Objects belong to one event loop
and take no locks.
"""

from __future__ import annotations

import math

import numpy as np

TIME_CONSTANT_S = 3.0
"""Events three times as old have a weight of 5 %."""

ARRIVALS_TIME_CONSTANT_S = 1.0
"""Shorter, because the policy smooths arrival rates itself."""

_NEGLIGIBLE = 1e-3

_LEARNING_RATE = 0.3
"""Weight of the newest pass of a batch size."""


class EwmaCounter:
    """A sum in which amounts of age ``time_constant_s`` have the weight 1/e."""

    def __init__(self, time_constant_s: float = TIME_CONSTANT_S) -> None:
        self._time_constant_s = time_constant_s
        self._sum = 0.0
        self._at = -math.inf

    def add(self, amount: float, now: float) -> None:
        self._sum = self.at(now) + amount
        self._at = max(now, self._at)

    def at(self, now: float) -> float:
        """The weighted sum."""
        age = max(0.0, now - self._at)
        return self._sum * math.exp(-age / self._time_constant_s) if self._sum else 0.0

    def per_s(self, now: float) -> float:
        """The rate per second."""
        return self.at(now) / self._time_constant_s


class BatchStats:
    """Arrivals and passes of a batched engine, of at most ``max_batch`` items each."""

    def __init__(self, max_batch: int) -> None:
        self._max_batch = max_batch
        self._arrivals = EwmaCounter(ARRIVALS_TIME_CONSTANT_S)
        self._passes = EwmaCounter()
        self._items = EwmaCounter()
        self._pass_s = EwmaCounter()
        # Items and seconds of recent passes; kept while idle, when the sums decay to zero.
        self._mean_pass: tuple[float, float] | None = None

    def arrived(self, now: float, items: int = 1) -> None:
        """Count items that arrive."""
        self._arrivals.add(float(items), now)

    def ended(self, items: int, seconds: float, now: float) -> None:
        """Count a pass that ends."""
        self._passes.add(1.0, now)
        self._items.add(items, now)
        self._pass_s.add(seconds, now)
        passes = self._passes.at(now)
        self._mean_pass = self._items.at(now) / passes, self._pass_s.at(now) / passes

    def report(self, now: float) -> dict[str, float]:
        """Statistics for ``record_autoscaling_stats``.

        Returns:
            ``arrivals_per_s`` in items; ``batch_fill`` (0-1), 0 after some idle seconds; and, once
            a pass has ended, ``pass_ms`` and ``pass_items``, the mean time and batch size of recent
            passes.
        """
        passes = self._passes.at(now)
        filled = self._items.at(now) / passes / self._max_batch if passes > _NEGLIGIBLE else 0.0
        found = {"arrivals_per_s": self._arrivals.per_s(now), "batch_fill": filled}
        if self._mean_pass is not None:
            found["pass_items"], seconds = self._mean_pass
            found["pass_ms"] = seconds * 1e3
        return found


class BatchLatencyModel:
    """Duration of a pass by batch size, learnt from recent passes."""

    def __init__(self) -> None:
        self._seconds: dict[int, float] = {}

    def observe(self, items: int, seconds: float) -> None:
        """Learn from a pass."""
        mean = self._seconds.get(items, seconds)
        self._seconds[items] = mean + _LEARNING_RATE * (seconds - mean)

    def items_within(self, seconds: float, max_items: int) -> int:
        """The largest batch, up to ``max_items``, that is expected to end within ``seconds``.

        Interpolates linearly between observed sizes.  Beyond the largest one, its duration
        is used: a pessimistic guess would never be corrected.  If even one item takes longer than
        ``seconds``, a small batch does not help: ``max_items``.
        """
        if not self._seconds or seconds >= max(self._seconds.values()):
            return max_items
        sizes = sorted(self._seconds)
        known = [self._seconds[size] for size in sizes]
        expected = np.interp(np.arange(1, max_items + 1), [0, *sizes], [0.0, *known])
        fitting = int(np.argmax(np.append(expected, math.inf) > seconds))
        return fitting or max_items


class HitRate:
    """Recent hit rate of the embedding cache."""

    def __init__(self) -> None:
        self._hits = EwmaCounter(3 * TIME_CONSTANT_S)
        self._lookups = EwmaCounter(3 * TIME_CONSTANT_S)

    def observe(self, hit: bool, now: float) -> None:
        """Count a lookup."""
        self._lookups.add(1.0, now)
        self._hits.add(float(hit), now)

    def report(self, now: float) -> dict[str, float]:
        """``hit_rate`` (0-1), if there were recent lookups."""
        lookups = self._lookups.at(now)
        return {"hit_rate": self._hits.at(now) / lookups} if lookups > _NEGLIGIBLE else {}
