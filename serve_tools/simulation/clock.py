"""Simulated time, a shared device, and noise."""

from __future__ import annotations

import heapq
from collections.abc import Callable
from typing import Any

import numpy as np


class Clock:
    """Simulated time and its scheduled calls."""

    def __init__(self) -> None:
        self.now = 0.0
        self._events: list[tuple[float, int, Callable[[Any], None], Any]] = []
        self._count = 0

    def at(self, t: float, call: Callable[[Any], None], argument: Any = None) -> None:
        """Call ``call(argument)`` at ``t``; calls due at the same time run in order of addition."""
        self._count += 1
        heapq.heappush(self._events, (t, self._count, call, argument))

    def run_until(self, t: float) -> None:
        """Run all calls due by ``t``."""
        events = self._events
        while events and events[0][0] <= t:
            self.now, _, call, argument = heapq.heappop(events)
            call(argument)
        self.now = t

    def run_out(self) -> None:
        """Run all remaining calls; anything that repeats must have stopped."""
        while self._events:
            self.run_until(self._events[0][0])


class Device:
    """One device that all passes share evenly, like replicas with as many threads as cores."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._active: list[tuple[float, int, Callable[[Any], None], Any]] = []
        self._count = self._plan = 0
        self._work, self._at = 0.0, 0.0

    def start(self, seconds: float, call: Callable[[Any], None], argument: Any) -> None:
        """Call ``call(argument)`` after ``seconds`` of device time were spent on this pass."""
        self._advance()
        self._count += 1
        heapq.heappush(self._active, (self._work + seconds, self._count, call, argument))
        self._schedule()

    def _advance(self) -> None:
        """Advance ``_work``, the device time that each active pass has received so far."""
        if self._active:
            self._work += (self._clock.now - self._at) / len(self._active)
        self._at = self._clock.now

    def _schedule(self) -> None:
        self._plan += 1
        if self._active:
            left = max(0.0, self._active[0][0] - self._work) * len(self._active)
            self._clock.at(self._clock.now + left, self._due, self._plan)

    def _due(self, plan: int) -> None:
        if plan != self._plan:
            return
        self._advance()
        _, _, call, argument = heapq.heappop(self._active)
        self._schedule()
        call(argument)


class Noise:
    """Log-normal factors with mean 1, generated in advance."""

    def __init__(self, rng: np.random.Generator, sigma: float, count: int = 65536) -> None:
        self._factors = np.exp(rng.normal(-(sigma**2) / 2, sigma, count)).tolist()
        self._i = 0

    def __call__(self) -> float:
        self._i = (self._i + 1) % len(self._factors)
        return float(self._factors[self._i])
