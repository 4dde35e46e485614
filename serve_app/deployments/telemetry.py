"""Metrics, request ids and spans of a replica's process, exported through Ray.

Ray's agent on each node collects the metrics of its processes every ten seconds, prefixes the
names with ``ray_`` and adds labels; `serve_app.telemetry.metrics` lists the metrics.
"""

from __future__ import annotations

import logging
import threading
import weakref
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

import ray.util.metrics
from ray import serve
from ray.serve.exceptions import RayServeException

from serve_app.deployments.compat.runtime import RequestContext, serve_logger
from serve_app.deployments.tracing import request_tracer, tracing_is_on
from serve_app.telemetry.context import set_request_context, set_tracer
from serve_app.telemetry.metrics import Counter, Gauge, Histogram, Instrument, set_collector

log = logging.getLogger(__name__)

_REFRESH_S = 5.0


def start_telemetry(*, ingress: bool = False) -> None:
    """Called by a replica when it starts; in an ingress traces start.  No effect elsewhere."""
    try:
        replica = serve.get_replica_context()
    except RayServeException:
        return
    place = {  # labels as of Serve's own metrics
        "application": replica.app_name,
        "deployment": replica.deployment,
        "replica": replica.replica_tag,
    }
    set_collector(RayCollector(place))
    with suppress(ImportError):  # a Ray without it: the ingress warns at its start
        set_request_context(RequestContext())
    if tracing_is_on():
        set_tracer(request_tracer(ingress=ingress))


def join_serve_log() -> None:
    """Send this project's log records to Serve's handlers: same files, format and request ids."""
    with suppress(ImportError):  # a Ray without it: the ingress warns at its start
        logging.getLogger("serve_app").parent = serve_logger()


class RayCollector:
    """Exports metrics through Ray; an error with one is logged once and never raised.

    ``place``: labels of all metrics of this process.
    """

    def __init__(self, place: Mapping[str, str]) -> None:
        self._place = place
        self._metrics: dict[str, Any] = {}
        self._failed: set[str] = set()
        self._gauges: dict[tuple[str | None, ...], tuple[Any, float, dict[str, str]]] = {}
        # Ray drops a gauge that was not set for 20 seconds.
        ended = threading.Event()
        weakref.finalize(self, ended.set)  # when it is dropped, and when the process exits
        refreshing = (weakref.ref(self), ended)
        threading.Thread(target=_refresh_until, args=refreshing, name="gauges", daemon=True).start()

    def count(self, counter: Counter, amount: float, labels: Mapping[str, str]) -> None:
        if amount > 0:
            self._record(counter, lambda m, tags: m.inc(amount, tags), labels)

    def set(self, gauge: Gauge, value: float, labels: Mapping[str, str]) -> None:
        def record(metric: Any, tags: dict[str, str]) -> None:
            metric.set(value, tags)
            self._gauges[gauge.name, *map(labels.get, gauge.labels)] = metric, value, tags

        self._record(gauge, record, labels)

    def observe(self, histogram: Histogram, value: float, labels: Mapping[str, str]) -> None:
        self._record(histogram, lambda m, tags: m.observe(value, tags), labels)

    def _record(
        self,
        instrument: Instrument,
        record: Callable[[Any, dict[str, str]], None],
        labels: Mapping[str, str],
    ) -> None:
        try:
            if instrument.name not in self._metrics:
                self._metrics[instrument.name] = self._create(instrument)
            record(self._metrics[instrument.name], {**labels, **self._place})
        except Exception:
            if instrument.name not in self._failed:
                self._failed.add(instrument.name)
                log.warning("the metric %s is not exported", instrument.name, exc_info=True)

    def refresh(self) -> None:
        """Set all gauges again to their last values; errors are ignored."""
        for metric, value, tags in list(self._gauges.values()):
            with suppress(Exception):
                metric.set(value, tags)

    def _create(self, instrument: Instrument) -> Any:
        keys = (*instrument.labels, *self._place)
        name, text = instrument.name, instrument.help
        if isinstance(instrument, Histogram):
            return ray.util.metrics.Histogram(name, text, list(instrument.buckets), keys)
        if isinstance(instrument, Counter):
            return ray.util.metrics.Counter(name, text, keys)
        return ray.util.metrics.Gauge(name, text, keys)


def _refresh_until(collector: weakref.ref[RayCollector], ended: threading.Event) -> None:
    """Refresh the gauges of a collector that is not kept alive by this."""
    while not ended.wait(_REFRESH_S):
        if (found := collector()) is not None:
            found.refresh()
        del found
