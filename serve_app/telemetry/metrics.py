"""Every metric of the service, and the counters, gauges and histograms that they are made of.

Ray exports them with the prefix ``ray_`` and the labels application, deployment and replica
(`serve_app.deployments.telemetry`); docs/observability.md describes each one.  Names follow
Prometheus: counters end in ``_total``, times are in seconds, ratios lie between 0 and 1.  Labels
have few values, known beforehand: never a request id, an image or a text.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol


class Collector(Protocol):
    """Receives the values of all metrics of a process."""

    def count(self, counter: Counter, amount: float, labels: Mapping[str, str]) -> None: ...
    def set(self, gauge: Gauge, value: float, labels: Mapping[str, str]) -> None: ...
    def observe(self, histogram: Histogram, value: float, labels: Mapping[str, str]) -> None: ...


_collector: Collector | None = None


def set_collector(collector: Collector | None) -> Collector | None:
    """Send the values of this process to ``collector``; returns the previous one."""
    global _collector
    previous, _collector = _collector, collector
    return previous


@dataclass(frozen=True, slots=True)
class Instrument:
    """A metric.

    Attributes:
        name: in Prometheus, without Ray's prefix.
        help: what one value means.
        labels: names of the labels that every value has.
    """

    name: str
    help: str
    labels: tuple[str, ...] = field(default=(), kw_only=True)

    def _check(self, labels: Mapping[str, str]) -> None:
        if labels.keys() != set(self.labels):
            raise ValueError(f"{self.name} has the labels {self.labels}")


@dataclass(frozen=True, slots=True)
class Counter(Instrument):
    """Counts events."""

    def inc(self, amount: float = 1.0, **labels: str) -> None:
        """Add ``amount`` events."""
        self._check(labels)
        if _collector is not None:
            _collector.count(self, amount, labels)


@dataclass(frozen=True, slots=True)
class Gauge(Instrument):
    """A value that goes up and down."""

    def set(self, value: float, **labels: str) -> None:
        """Set the present value."""
        self._check(labels)
        if _collector is not None:
            _collector.set(self, value, labels)


@dataclass(frozen=True, slots=True)
class Histogram(Instrument):
    """The distribution of a value.

    Attributes:
        buckets: upper bounds, ascending.
    """

    buckets: tuple[float, ...] = field(kw_only=True)

    def observe(self, value: float, **labels: str) -> None:
        """Add one value."""
        self._check(labels)
        if _collector is not None:
            _collector.observe(self, value, labels)


SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)

REQUESTS = Counter(
    "sam_requests_total",
    "HTTP requests completed, by route template, status, and error code (empty: none)",
    labels=("route", "status", "code"),
)
REQUEST_SECONDS = Histogram(
    "sam_request_duration_seconds",
    "From the first byte of a request to the last byte of its response",
    labels=("route",),
    buckets=SECONDS,
)
REQUESTS_IN_FLIGHT = Gauge("sam_requests_in_flight", "HTTP requests in flight in the ingress")
REJECTIONS = Counter(
    "sam_refusals_total",
    "Requests rejected before any work: capacity, rate, key, body_size, body_time, stopping",
    labels=("reason",),
)
STAGE_SECONDS = Histogram(
    "sam_stage_duration_seconds",
    "Time that a request spent in one of its stages, which are those of timings_ms",
    labels=("stage",),
    buckets=SECONDS,
)
QUEUE_ITEMS = Gauge(
    "sam_queue_items", "Items (images, prompts) that wait for a forward pass", labels=("queue",)
)
QUEUE_AGE = Gauge(
    "sam_queue_oldest_seconds", "How long the oldest waiting item has waited", labels=("queue",)
)
BATCH_ITEMS = Histogram(
    "sam_batch_items",
    "Items in one forward pass",
    labels=("queue",),
    buckets=(1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0),
)
BATCH_FILL = Gauge(
    "sam_batch_fill_ratio",
    "Items of the last passes as a share of the maximum batch size; 0 after some idle seconds",
    labels=("queue",),
)
CACHE_LOOKUPS = Counter(
    "sam_cache_lookups_total",
    "Lookups by cache (embedding, image) and result (memory, redis, miss, corrupt)",
    labels=("cache", "result"),
)
REDIS_OPERATIONS = Counter(
    "sam_redis_operations_total",
    "Operations of Redis (get, put) by outcome (ok, error, timeout, skipped, dropped)",
    labels=("operation", "outcome"),
)
REDIS_BREAKER_OPEN = Gauge("sam_redis_breaker_open", "1 while the circuit to Redis is open, else 0")
ESCALATIONS = Counter(
    "sam_escalations_total",
    "Images escalated to a second variant, by outcome (`answered`, `no_time`, `failed`)",
    labels=("outcome",),
)
RETRIES = Counter(
    "sam_retries_total",
    "Calls retried because a replica was lost, by callee and outcome (ok, failed, left)",
    labels=("callee", "outcome"),
)
VARIANT_REPLICAS = Gauge(
    "sam_variant_replicas", "Running replicas of a variant's component", labels=("variant", "half")
)
