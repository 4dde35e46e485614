"""Milliseconds by stage."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from serve_app.telemetry.context import span
from serve_app.telemetry.metrics import STAGE_SECONDS


class Timings:
    """Adds up the time of each stage of one request."""

    def __init__(self) -> None:
        self._ms: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time a block, which is a span too; blocks of one name add up."""
        started = time.perf_counter()
        try:
            with span(name):
                yield
        finally:
            self.add({name: (time.perf_counter() - started) * 1e3})

    def add(self, timings_ms: Mapping[str, float]) -> None:
        """Add what another process measured."""
        for name, value in timings_ms.items():
            self._ms[name] = self._ms.get(name, 0.0) + value

    def publish(self) -> None:
        """Tell the metrics; once, when the request is answered."""
        for name, value in self._ms.items():
            STAGE_SECONDS.observe(value / 1e3, stage=name)

    @property
    def ms(self) -> dict[str, float]:
        """Milliseconds by stage, to the microsecond."""
        return {name: round(value, 3) for name, value in self._ms.items()}
