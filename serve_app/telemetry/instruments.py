"""Counters, gauges and histograms that know what they mean, and not who collects them.

The kinds and the names' endings are Prometheus' own: a counter ends in ``_total``, times are in
seconds, shares lie between 0 and 1.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol


class Collector(Protocol):
    """Where figures go; one for a process."""

    def count(self, counter: Counter, amount: float, labels: Mapping[str, str]) -> None: ...

    def set(self, gauge: Gauge, value: float, labels: Mapping[str, str]) -> None: ...

    def observe(self, histogram: Histogram, value: float, labels: Mapping[str, str]) -> None: ...


_collector: Collector | None = None


def collect_with(collector: Collector | None) -> None:
    """Whoever tells something in this process tells it to ``collector`` from now on."""
    global _collector
    _collector = collector


@dataclass(frozen=True, slots=True)
class Instrument:
    """A named family of figures.

    Attributes:
        name: in Prometheus.
        help: what one figure says.
        labels: that every figure has.
    """

    name: str
    help: str
    labels: tuple[str, ...] = field(default=(), kw_only=True)

    def _checked(self, labels: Mapping[str, str]) -> Mapping[str, str]:
        if labels.keys() != set(self.labels):
            raise ValueError(f"{self.name} has the labels {self.labels}")
        return labels


@dataclass(frozen=True, slots=True)
class Counter(Instrument):
    """Counts what happens."""

    def inc(self, amount: float = 1.0, **labels: str) -> None:
        """It happened ``amount`` times."""
        checked = self._checked(labels)
        if _collector is not None:
            _collector.count(self, amount, checked)


@dataclass(frozen=True, slots=True)
class Gauge(Instrument):
    """Something's size now."""

    def set(self, value: float, **labels: str) -> None:
        """It is ``value`` now."""
        checked = self._checked(labels)
        if _collector is not None:
            _collector.set(self, value, checked)


@dataclass(frozen=True, slots=True)
class Histogram(Instrument):
    """How often a figure falls into which range.

    Attributes:
        buckets: upper bounds, ascending.
    """

    buckets: tuple[float, ...] = field(kw_only=True)

    def observe(self, value: float, **labels: str) -> None:
        """One figure."""
        checked = self._checked(labels)
        if _collector is not None:
            _collector.observe(self, value, checked)
