"""OpenTelemetry traces: export, sampling, and spans of our own.

Ray Serve creates a span for each call of a deployment and connects them across replicas.  Its
configuration names `exporter`::

    tracing_config:
      enabled: true
      exporter_import_path: serve_app.deployments.tracing:exporter
      sampling_ratio: 0.01

If the replicas' environment sets `OTEL_EXPORTER_OTLP_ENDPOINT` (or the variable for traces), spans
are sent there by OTLP over HTTP.  Otherwise each process writes them to a file, one JSON object per
line, in ``spans/`` beside Serve's logs.
"""

from __future__ import annotations

import importlib.util
import logging
import os
from typing import Any

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, ConsoleSpanExporter, SpanExporter
from opentelemetry.sdk.trace.sampling import Decision, Sampler, SamplingResult

from serve_app.deployments.compat.inventory import REQUEST_SPAN
from serve_app.deployments.compat.runtime import serve_logs_dir

log = logging.getLogger(__name__)

_ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
_OTLP = "opentelemetry.exporter.otlp.proto.http"
_SERVICE = "sam-serve"


def exporter() -> list[SpanProcessor]:
    """Called by Serve in each process, before its first span."""
    # Serve creates the provider; OpenTelemetry reads its resource from the environment.
    os.environ.setdefault("OTEL_SERVICE_NAME", _SERVICE)
    found = _exporter()
    return [] if found is None else [BatchSpanProcessor(found)]


def _exporter() -> SpanExporter | None:
    if any(os.environ.get(name) for name in _ENDPOINTS):
        if importlib.util.find_spec(_OTLP.rpartition(".")[0]) is not None:
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

            return OTLPSpanExporter()
        log.warning("spans are written to files: OTLP needs the extra serve-anything[tracing]")
    try:
        folder = serve_logs_dir() / "spans"
    except ImportError:
        log.warning("spans are not exported: this Ray does not name its folder of logs")
        return None
    folder.mkdir(parents=True, exist_ok=True)
    file = (folder / f"{os.getpid()}.jsonl").open("a", encoding="utf-8")
    return ConsoleSpanExporter(out=file, formatter=lambda span: span.to_json(indent=None) + "\n")


def tracing_is_on() -> bool:
    """Whether Serve traces in this process: only then it sets a provider."""
    return isinstance(trace.get_tracer_provider(), TracerProvider)


class RootSpanSampler(Sampler):
    """Starts traces at requests only, with the rate of another sampler.

    Serve does not remember that it did not sample a request: it would decide anew at each call of
    that request, and most traces would be fragments.

    ``ratio`` decides on requests, which clients send to an ``ingress``, and on spans with a parent.
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
        if parent.is_valid or (self._ingress and name.startswith(REQUEST_SPAN)):
            return self._ratio.should_sample(parent_context, trace_id, name, *args, **kwargs)
        return SamplingResult(Decision.DROP)

    def get_description(self) -> str:
        return f"RootSpanSampler({self._ratio.get_description()})"


def request_tracer(*, ingress: bool) -> trace.Tracer:
    """Return the tracer for our own spans, in the traces that Serve starts."""
    provider = trace.get_tracer_provider()
    if isinstance(provider, TracerProvider):
        # Before the first span: a tracer keeps the sampler that it was created with.
        provider.sampler = RootSpanSampler(provider.sampler, ingress=ingress)
    return trace.get_tracer(_SERVICE)
