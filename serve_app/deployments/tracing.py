"""OpenTelemetry traces: where spans go, which traces are begun, and spans of our own.

Ray Serve makes a span of each call of a deployment and connects them across replicas; its
configuration names `exporter`::

    tracing_config:
      enabled: true
      exporter_import_path: serve_app.deployments.tracing:exporter
      sampling_ratio: 0.01

With `OTEL_EXPORTER_OTLP_ENDPOINT` (or OpenTelemetry's other variables of that kind) in the
replicas' environment spans go there by OTLP over HTTP; otherwise each process writes them to a
file, one JSON object a line, in ``spans/`` beside Serve's logs.
"""

from __future__ import annotations

import importlib.util
import logging
import os
from pathlib import Path
from typing import Any

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, ConsoleSpanExporter, SpanExporter
from opentelemetry.sdk.trace.sampling import Decision, Sampler, SamplingResult
from ray.serve._private.logging_utils import get_serve_logs_dir
from ray.serve._private.tracing_utils import is_tracing_enabled

log = logging.getLogger(__name__)

_ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
_OTLP = "opentelemetry.exporter.otlp.proto.http"
_SERVICE = "sam-serve"
_REQUEST = "replica_handle_request "
"""How Serve names the span of a replica's call."""


def exporter() -> list[SpanProcessor]:
    """Called by Serve in each process, before its first span."""
    # Serve makes the provider, whose resource OpenTelemetry takes from the environment.
    os.environ.setdefault("OTEL_SERVICE_NAME", _SERVICE)
    return [BatchSpanProcessor(_exporter())]


def _exporter() -> SpanExporter:
    if any(os.environ.get(name) for name in _ENDPOINTS):
        if importlib.util.find_spec(_OTLP.rpartition(".")[0]) is not None:
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

            return OTLPSpanExporter()
        log.warning("spans go to files: OTLP needs the extra serve-anything[tracing]")
    folder = Path(get_serve_logs_dir()) / "spans"
    folder.mkdir(parents=True, exist_ok=True)
    file = (folder / f"{os.getpid()}.jsonl").open("a", encoding="utf-8")
    return ConsoleSpanExporter(out=file, formatter=lambda span: span.to_json(indent=None) + "\n")


def tracing_is_on() -> bool:
    """Whether Serve traces in this process."""
    return bool(is_tracing_enabled())


class RequestsAlone(Sampler):
    """Begins a trace for a request alone, as often as another sampler says.

    Serve forgets, after a request's span was not sampled, that it was: it would begin a trace, or
    not, at each further call of the same request, and most traces would be such pieces.

    Args:
        ratio: who decides on requests, and on what has a parent.
        ingress: whether this process is asked by clients.
    """

    def __init__(self, ratio: Sampler, *, ingress: bool) -> None:
        self._ratio = ratio
        self._ingress = ingress

    def should_sample(
        self,
        parent_context: Context | None,
        trace_id: int,
        name: str,
        *args: Any,
        **kwargs: Any,
    ) -> SamplingResult:
        parent = trace.get_current_span(parent_context).get_span_context()
        if parent.is_valid or (self._ingress and name.startswith(_REQUEST)):
            return self._ratio.should_sample(parent_context, trace_id, name, *args, **kwargs)
        return SamplingResult(Decision.DROP)

    def get_description(self) -> str:
        return f"RequestsAlone({self._ratio.get_description()})"


def request_tracer(*, ingress: bool) -> trace.Tracer:
    """Return the tracer for our own spans, in the traces that Serve starts.

    Args:
        ingress: whether this process serves clients.
    """
    provider = trace.get_tracer_provider()
    if isinstance(provider, TracerProvider):
        # Before the first span: a tracer keeps the sampler that it was created with.
        provider.sampler = RequestsAlone(provider.sampler, ingress=ingress)
    return trace.get_tracer(_SERVICE)
