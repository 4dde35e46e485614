"""Metrics, request ids and spans of a replica's process, as Ray collects and passes them on.

Ray gathers each process's figures in the agent of its node every ten seconds, puts ``ray_``
before the names, and adds labels; `serve_app.telemetry.metrics` has what there is.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Any

import ray.util.metrics
from ray import serve
from ray.serve.context import _RequestContext, _serve_request_context
from ray.serve.exceptions import RayServeException

from serve_app.deployments.tracing import request_tracer, tracing_is_on
from serve_app.telemetry.context import set_request_context, set_tracer
from serve_app.telemetry.metrics import Counter, Gauge, Histogram, Instrument, set_collector

log = logging.getLogger(__name__)

_PLACE = ("application", "deployment", "replica")
"""Labels of every figure; as in Serve's own metrics."""

_KEEP_S = 5.0


def start_telemetry(*, ingress: bool = False) -> None:
    """Called where a replica starts; nothing happens in a process that is none.

    Args:
        ingress: whether clients ask this replica, so that traces begin here.
    """
    try:
        replica = serve.get_replica_context()
    except RayServeException:
        return
    place = (replica.app_name, replica.deployment, replica.replica_tag)
    set_collector(RayCollector(dict(zip(_PLACE, place, strict=True))))
    set_request_context(ServeRequests())
    if tracing_is_on():
        set_tracer(request_tracer(ingress=ingress))


class RayCollector:
    """Hands figures to Ray; whatever is wrong with one is logged once and disturbs nobody.

    Args:
        place: labels, and their values, of all figures of this process.
    """

    def __init__(self, place: Mapping[str, str]) -> None:
        self._place = dict(place)
        self._metrics: dict[str, Any] = {}
        self._complained: set[str] = set()
        self._gauges: dict[tuple[str | None, ...], tuple[Any, float, dict[str, str]]] = {}
        # Ray forgets a gauge that nobody has set for twenty seconds.
        keeper = threading.Thread(target=self._keep, name="gauges", daemon=True)
        keeper.start()

    def count(self, counter: Counter, amount: float, labels: Mapping[str, str]) -> None:
        if amount > 0:
            self._tell(counter, lambda m, tags: m.inc(amount, tags), labels)

    def set(self, gauge: Gauge, value: float, labels: Mapping[str, str]) -> None:
        def tell(metric: Any, tags: dict[str, str]) -> None:
            metric.set(value, tags)
            self._gauges[gauge.name, *map(labels.get, gauge.labels)] = metric, value, tags

        self._tell(gauge, tell, labels)

    def observe(self, histogram: Histogram, value: float, labels: Mapping[str, str]) -> None:
        self._tell(histogram, lambda m, tags: m.observe(value, tags), labels)

    def _tell(
        self,
        instrument: Instrument,
        tell: Callable[[Any, dict[str, str]], None],
        labels: Mapping[str, str],
    ) -> None:
        try:
            metric = self._metrics.get(instrument.name) or self._made(instrument)
            tell(metric, {**labels, **self._place})
        except Exception:
            if instrument.name not in self._complained:
                self._complained.add(instrument.name)
                log.warning("the metric %s is not collected", instrument.name, exc_info=True)

    def refresh(self) -> None:
        """Tell all gauges again, as they were last."""
        for metric, value, tags in list(self._gauges.values()):
            metric.set(value, tags)

    def _keep(self) -> None:
        while True:
            time.sleep(_KEEP_S)
            with suppress(Exception):
                self.refresh()

    def _made(self, instrument: Instrument) -> Any:
        keys = (*instrument.labels, *self._place)
        name, told = instrument.name, instrument.help
        metric: Any
        if isinstance(instrument, Histogram):
            metric = ray.util.metrics.Histogram(name, told, list(instrument.buckets), keys)
        elif isinstance(instrument, Counter):
            metric = ray.util.metrics.Counter(name, told, keys)
        else:
            metric = ray.util.metrics.Gauge(name, told, keys)
        self._metrics[instrument.name] = metric
        return metric


class ServeRequests:
    """The request at hand as Ray Serve knows it: what its log lines and calls carry along."""

    def request_id(self) -> str:
        request = _serve_request_context.get()
        return "" if request is None else str(request.request_id)

    def rename(self, request_id: str) -> None:
        request = _serve_request_context.get()
        if request is not None and request.request_id != request_id:
            _serve_request_context.set(replace(request, request_id=request_id))

    def carry(self) -> Callable[[], None]:
        request = _serve_request_context.get()

        def carry() -> None:
            if request is not None:
                # Without the internal id, by which Serve finds the calls to cancel.
                _serve_request_context.set(
                    _RequestContext(
                        request_id=request.request_id,
                        route=request.route,
                        app_name=request.app_name,
                    )
                )

        return carry
