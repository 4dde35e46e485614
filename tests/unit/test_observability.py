"""Metrics, the request's id and spans: what is told, to whom, and that the documents agree."""

from __future__ import annotations

import asyncio
import gzip
import json
import re
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from contextvars import ContextVar
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import AsyncMock

import pytest
import yaml
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ALWAYS_ON, ParentBased, Sampler
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags, set_span_in_context
from ray.exceptions import ActorDiedError

from serve_app.batching.batcher import Batcher
from serve_app.core.errors import ReplicaLost
from serve_app.core.settings import Batching, GraphSettings
from serve_app.core.single_flight import SingleFlight
from serve_app.deployments import telemetry
from serve_app.deployments.calls import call_with_retry
from serve_app.deployments.tracing import RootSpanSampler, exporter
from serve_app.deployments.watch import ReplicaCounts
from serve_app.flow.context import Timings
from serve_app.http.middleware import AuditLogMiddleware
from serve_app.telemetry import context, metrics
from serve_app.telemetry.metrics import Counter, Histogram, Instrument, set_collector

from ..clocks import Clock

ROOT = Path(__file__).resolve().parents[2]
INSTRUMENTS = [i for i in vars(metrics).values() if isinstance(i, Instrument)]
EXPORTED = {f"ray_{i.name}": i for i in INSTRUMENTS}
DOCUMENT = (ROOT / "docs/observability.md").read_text("utf-8")
DASHBOARD = json.loads((ROOT / "deploy/grafana/sam-serve.json").read_text("utf-8"))
ALERTS = yaml.safe_load((ROOT / "deploy/prometheus/alerts.yaml").read_text("utf-8"))

SERVES_OWN = {
    "ray_serve_deployment_replica_healthy",
    "ray_serve_deployment_replica_starts_total",
    "ray_serve_replica_processing_queries",
}
"""Of Ray Serve, in use here; tests/cluster/test_observability.py finds them on the real page."""


class Told:
    """A collector that keeps what it is told."""

    def __init__(self) -> None:
        self.figures: list[tuple[str, float, dict[str, str]]] = []

    def _keep(self, instrument: Instrument, value: float, labels: Mapping[str, str]) -> None:
        self.figures.append((instrument.name, value, dict(labels)))

    count = set = observe = _keep

    def of(self, instrument: Instrument) -> list[tuple[float, dict[str, str]]]:
        return [(v, labels) for name, v, labels in self.figures if name == instrument.name]


@pytest.fixture
def told() -> Iterator[Told]:
    collector = Told()
    previous = set_collector(collector)
    yield collector
    set_collector(previous)


# What the files say of metrics.


def _named(text: str) -> set[str]:
    """Metrics that a text names; a histogram's by its family."""
    found = set(re.findall(r"\bray_[a-z_]+", text))
    families = {name for name, i in EXPORTED.items() if isinstance(i, Histogram)}
    return {
        base if (base := re.sub(r"_(bucket|count|sum)$", "", name)) in families else name
        for name in found
    }


def _dashboard_expressions() -> list[str]:
    return [t["expr"] for p in DASHBOARD["panels"] for t in p.get("targets", ())]


def _alert_expressions() -> list[str]:
    return [rule["expr"] for group in ALERTS["groups"] for rule in group["rules"]]


def test_the_document_has_each_metric_with_its_labels_and_no_other() -> None:
    rows = dict(re.findall(r"^\| `(ray_sam_\w+)` \|([^|]*)\|", DOCUMENT, re.M))
    assert rows.keys() == EXPORTED.keys()
    for name, labels in rows.items():
        assert set(re.findall(r"`(\w+)`", labels)) == set(EXPORTED[name].labels), name
    assert _named(DOCUMENT) <= EXPORTED.keys() | SERVES_OWN | {"ray_serve_", "ray_sam_", "ray_"}


def test_dashboard_and_alerts_ask_for_metrics_that_exist() -> None:
    dashboard, alerts = _named(" ".join(_dashboard_expressions())), _named(str(ALERTS))
    assert dashboard | alerts <= EXPORTED.keys() | SERVES_OWN
    # The dashboard leaves nothing of ours out.
    assert EXPORTED.keys() <= dashboard


@pytest.mark.parametrize("expression", [*_dashboard_expressions(), *_alert_expressions()])
def test_expressions_ask_for_labels_that_exist(expression: str) -> None:
    usual = {"application", "deployment", "replica", "le", "job"}
    known = usual.union(*(EXPORTED[n].labels for n in _named(expression) & EXPORTED.keys()))
    filtered = re.findall(r"[{,](\w+)[!=]~?", expression)
    grouped = [w for g in re.findall(r"by \(([^)]*)\)", expression) for w in g.split(", ")]
    assert set(filtered) | set(grouped) <= known


def test_shares_of_requests_leave_probes_and_scrapes_out() -> None:
    """They are answered 200 while all else fails, and may be most of a quiet service's requests."""
    shares = [
        e for e in (*_dashboard_expressions(), *_alert_expressions())
        if e.count("ray_sam_requests_total") == 2
    ]  # fmt: skip
    assert len(shares) == 3
    for expression in shares:
        assert expression.count('route!~"/healthz|/readyz|/health|/metrics"') == 2


def test_the_scrape_configuration_shows_where_a_key_goes() -> None:
    text = (ROOT / "deploy/prometheus/prometheus.yaml").read_text("utf-8")
    told = re.sub(r"^( *)# (authorization:|  credentials_file:)", r"\1\2", text, flags=re.M)
    job = yaml.safe_load(told)["scrape_configs"][0]
    assert job["authorization"].keys() == {"credentials_file"}
    assert "authorization" not in yaml.safe_load(text)["scrape_configs"][0]


def test_each_alert_says_what_to_do() -> None:
    rules = [rule for group in ALERTS["groups"] for rule in group["rules"]]
    for rule in rules:
        assert rule["alert"].startswith("SamServe")
        assert rule["labels"]["severity"] in {"page", "ticket"}
        assert rule["annotations"].keys() == {"summary", "action"}
        assert f"`{rule['alert']}`" in DOCUMENT
    named = set(re.findall(r'"([A-Z][^"]+)"', " ".join(r["annotations"]["action"] for r in rules)))
    assert named <= {panel["title"] for panel in DASHBOARD["panels"]}


def test_the_dashboard_can_be_imported_anywhere() -> None:
    variables = {v["name"] for v in DASHBOARD["templating"]["list"]}
    assert variables == {"datasource", "application"}
    for panel in DASHBOARD["panels"]:
        if panel["type"] != "row":
            assert panel["datasource"]["uid"] == "${datasource}"
            assert panel["targets"]
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(set(ids)) == len(ids)


def test_names_follow_the_conventions_of_prometheus() -> None:
    for instrument in INSTRUMENTS:
        assert re.fullmatch(r"sam(_[a-z]+)+", instrument.name)
        assert isinstance(instrument, Counter) == instrument.name.endswith("_total")
        if isinstance(instrument, Histogram):
            assert list(instrument.buckets) == sorted(set(instrument.buckets))


# What is told.


def test_an_instrument_wants_its_labels_also_where_nobody_collects() -> None:
    with pytest.raises(ValueError, match="labels"):
        metrics.REJECTIONS.inc(cause="rate")


def test_timings_become_a_figure_for_each_stage(told: Told) -> None:
    timings = Timings()
    timings.add({"embed": 1500.0, "model": 20.0})
    timings.add({"model": 5.0})
    assert told.figures == []
    timings.publish()
    assert told.of(metrics.STAGE_SECONDS) == [
        (1.5, {"stage": "embed"}),
        (0.025, {"stage": "model"}),
    ]


async def test_a_queue_tells_of_its_passes_and_is_empty_again(told: Told, clock: Clock) -> None:
    batcher: Batcher[int, int] = Batcher(list, Batching(max_batch_size=4), "prompts")
    assert await batcher.run_all([1, 2, 3, 4, 5, 6]) == [1, 2, 3, 4, 5, 6]
    labels = {"queue": "prompts"}
    assert told.of(metrics.BATCH_ITEMS) == [(4, labels), (2, labels)]
    batcher.report()
    assert told.of(metrics.QUEUE_ITEMS) == [(0, labels)]
    assert told.of(metrics.QUEUE_AGE) == [(0.0, labels)]
    ((fill, _),) = told.of(metrics.BATCH_FILL)
    assert fill == pytest.approx(0.75)


def test_what_waits_is_told_when_serve_asks(told: Told) -> None:
    async def wait() -> None:
        stuck = asyncio.Event()
        batcher: Batcher[int, int] = Batcher(list, Batching(max_batch_size=1), "images")

        async def run(*_: object) -> list[int]:
            await stuck.wait()
            return [1]

        batcher.thread = SimpleNamespace(run=run)  # type: ignore[assignment]
        calls = [asyncio.create_task(batcher(i)) for i in range(3)]
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        batcher.report()
        stuck.set()
        await asyncio.gather(*calls)

    asyncio.run(wait())
    assert told.of(metrics.QUEUE_ITEMS)[0] == (2, {"queue": "images"})


async def test_calls_that_are_made_again_are_counted_by_what_came_of_it(told: Told) -> None:
    async def lost() -> None:
        raise ActorDiedError

    async def found() -> str:
        return "masks"

    for second in (found, lost):
        calls = iter((lost, second))
        with suppress(ReplicaLost):
            await call_with_retry("decoder", lambda calls=calls: next(calls)())
    assert told.of(metrics.RETRIES) == [
        (1.0, {"callee": "decoder", "outcome": outcome}) for outcome in ("ok", "failed")
    ]


def test_replicas_are_told_by_variant_and_half(told: Told) -> None:
    load_tracker: Any = SimpleNamespace(replicas=lambda *_: None)
    ReplicaCounts(GraphSettings(), load_tracker).update("fast-encoder", 2)
    assert told.of(metrics.VARIANT_REPLICAS) == [(2, {"variant": "fast", "half": "encoder"})]


# How Ray is told.


class FakeMetric:
    """Stands for those of ``ray.util.metrics``."""

    made: list[FakeMetric]
    broken = False

    def __init__(self, name: str, *_: object) -> None:
        if self.broken:
            raise RuntimeError("no")
        self.name, self.told = name, []  # type: ignore[var-annotated]
        self.made.append(self)

    def _tell(self, value: float, tags: dict[str, str]) -> None:
        self.told.append((value, tags))

    inc = set = observe = _tell


@pytest.fixture
def rays(monkeypatch: pytest.MonkeyPatch) -> type[FakeMetric]:
    FakeMetric.made, FakeMetric.broken = [], False
    for kind in ("Counter", "Gauge", "Histogram"):
        monkeypatch.setattr(f"ray.util.metrics.{kind}", FakeMetric)
    return FakeMetric


def test_ray_is_told_with_the_replicas_labels_by_one_metric_each(rays: type[FakeMetric]) -> None:
    collector = telemetry.RayCollector({"application": "sam", "replica": "r1"})
    for callee in ("decoder", "encoder"):
        collector.count(metrics.RETRIES, 1.0, {"callee": callee, "outcome": "ok"})
    collector.count(metrics.RETRIES, 0.0, {"callee": "text", "outcome": "ok"})
    collector.observe(metrics.STAGE_SECONDS, 0.5, {"stage": "embed"})
    place = {"application": "sam", "replica": "r1"}
    retries, stages = rays.made
    assert retries.told == [
        (1.0, {"callee": callee, "outcome": "ok", **place}) for callee in ("decoder", "encoder")
    ]
    assert stages.told == [(0.5, {"stage": "embed", **place})]


def test_a_metric_that_cannot_be_made_disturbs_nobody_and_is_logged_once(
    rays: type[FakeMetric], our_log: Any
) -> None:
    rays.broken = True
    collector = telemetry.RayCollector({})
    for _ in range(3):
        collector.set(metrics.REDIS_BREAKER_OPEN, 1.0, {})
    assert [r.message for r in our_log()] == ["the metric sam_redis_breaker_open is not exported"]


def test_gauges_are_told_again_and_again_as_they_were_last(rays: type[FakeMetric]) -> None:
    collector = telemetry.RayCollector({})
    collector.set(metrics.QUEUE_ITEMS, 3.0, {"queue": "images"})
    collector.set(metrics.QUEUE_ITEMS, 0.0, {"queue": "images"})
    collector.set(metrics.QUEUE_ITEMS, 7.0, {"queue": "prompts"})
    collector.refresh()
    (metric,) = rays.made
    assert metric.told[3:] == [(0.0, {"queue": "images"}), (7.0, {"queue": "prompts"})]


def test_the_refreshing_thread_ends_with_its_collector(rays: type[FakeMetric]) -> None:
    before = {*threading.enumerate()}
    collector = telemetry.RayCollector({})
    collector.set(metrics.QUEUE_ITEMS, 3.0, {"queue": "images"})
    (refreshing,) = (t for t in threading.enumerate() if t.name == "gauges" and t not in before)
    del collector
    refreshing.join(timeout=60)
    assert not refreshing.is_alive()


def test_what_is_no_replica_collects_nothing() -> None:
    telemetry.start_telemetry()
    metrics.RETRIES.inc(callee="decoder", outcome="ok")
    assert context.current_request_id() == ""
    assert context.current_trace() is None


# The request at hand.

_HAND: ContextVar[str] = ContextVar("hand", default="")


class FakeRequests:
    """Knows requests by a context variable, as Serve does."""

    def request_id(self) -> str:
        return _HAND.get()

    def rename(self, request_id: str) -> None:
        _HAND.set(request_id)

    def carry(self) -> Callable[[], None]:
        found = _HAND.get()

        def carry() -> None:
            _HAND.set(f"{found}, carried")

        return carry


@pytest.fixture
def requests() -> Iterator[None]:
    context.set_request_context(FakeRequests())
    yield
    context.set_request_context(None)


@pytest.mark.usefixtures("requests")
@pytest.mark.parametrize("sent", ["plain-1", "not plain!"])
async def test_the_request_is_named_as_the_answer_says(sent: str) -> None:
    """Whatever Serve took for its id before."""
    seen, answered = [], {}

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.append(context.current_request_id())
        await send({"type": "http.response.start", "status": 200, "headers": []})

    async def send(message: Any) -> None:
        answered.update(message["headers"])

    scope = {
        "type": "http",
        "method": "GET",
        "path": "/",
        "headers": [(b"x-request-id", sent.encode())],
    }
    context.rename_request("another")
    await AuditLogMiddleware(app, templates=list)(scope, AsyncMock(), send)
    assert seen == [answered[b"x-request-id"].decode()]
    assert (seen == [sent]) is ("!" not in sent)


@pytest.mark.usefixtures("requests")
async def test_an_id_that_serve_has_is_not_put_into_the_answer_twice() -> None:
    sent: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})

    context.rename_request("serves")
    scope = {
        "type": "http",
        "method": "GET",
        "path": "/",
        "headers": [(b"x-request-id", b"serves")],
    }
    middleware = AuditLogMiddleware(app, templates=list)
    await middleware(scope, AsyncMock(), AsyncMock(side_effect=sent.append))
    assert sent[0]["headers"] == []


@pytest.mark.usefixtures("requests")
async def test_a_shared_computation_belongs_to_the_request_that_began_it() -> None:
    flight: SingleFlight[str] = SingleFlight()
    begun, go_on = asyncio.Event(), asyncio.Event()

    async def compute() -> str:
        begun.set()
        await go_on.wait()
        return context.current_request_id()

    async def ask(name: str) -> str:
        context.rename_request(name)
        return await flight.run("key", compute)

    first = asyncio.create_task(ask("first"))
    await begun.wait()
    second = asyncio.create_task(ask("second"))
    await asyncio.sleep(0)
    go_on.set()
    assert await asyncio.gather(first, second) == ["first, carried"] * 2


# Spans.


@pytest.fixture
def spans() -> Iterator[InMemorySpanExporter]:
    """The spans that this process finishes."""
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    context.set_tracer(provider.get_tracer("test"))
    yield exporter
    context.set_tracer(None)


async def test_a_call_waits_once_and_has_a_span_for_each_of_its_passes(
    spans: InMemorySpanExporter,
) -> None:
    batcher: Batcher[int, int] = Batcher(list, Batching(max_batch_size=4))
    with context.span("request"):
        await batcher.run_all(list(range(6)))
    *found, request = spans.get_finished_spans()
    assert request.context is not None
    told = [(s.name, s.attributes["items"]) for s in found if s.attributes]
    assert told == [("wait", 6), ("pass", 4), ("pass", 2)]
    for span in found:
        assert span.parent is not None
        assert span.parent.span_id == request.context.span_id
        assert (request.start_time or 0) <= (span.start_time or 0) <= (span.end_time or 0)


async def test_a_shared_computation_belongs_to_the_trace_that_began_it(
    spans: InMemorySpanExporter,
) -> None:
    flight: SingleFlight[None] = SingleFlight()

    async def compute() -> None:
        with context.span("compute"):
            pass

    with context.span("request"):
        await flight.run("key", compute)
    inner, request = spans.get_finished_spans()
    assert (inner.name, request.name) == ("compute", "request")
    assert inner.parent == request.context


async def test_what_is_outside_of_a_trace_records_no_passes(spans: InMemorySpanExporter) -> None:
    batcher: Batcher[int, int] = Batcher(list, Batching(max_batch_size=4))
    await batcher.run_all(list(range(6)))
    assert spans.get_finished_spans() == ()


def _started(sampler: Sampler, ingress: bool, name: str, parent: bool | None) -> bool:
    """Whether a span is recorded; ``parent``: whether that was sampled, None: there is none."""
    provider = TracerProvider(sampler=RootSpanSampler(sampler, ingress=ingress))
    parent_context = None
    if parent is not None:
        above = SpanContext(1, 1, is_remote=True, trace_flags=TraceFlags(int(parent)))
        parent_context = set_span_in_context(NonRecordingSpan(above))
    return provider.get_tracer("test").start_span(name, parent_context).is_recording()


@pytest.mark.parametrize("ingress", [True, False])
def test_only_a_request_at_the_ingress_begins_a_trace(ingress: bool) -> None:
    handle, route = "replica_handle_request ingress __call__", "route_to_replica fast-decoder x"
    always, never = ParentBased(ALWAYS_ON), ParentBased(ALWAYS_OFF)
    assert _started(always, ingress, handle, None) is ingress
    assert _started(never, ingress, handle, None) is False
    assert _started(always, ingress, route, None) is False
    for sampled in (True, False):
        assert _started(never, ingress, route, sampled) is sampled


def test_spans_go_to_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serve_app.deployments.tracing.serve_logs_dir", lambda: tmp_path)
    monkeypatch.delenv("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", raising=False)
    monkeypatch.delenv("OTEL_EXPORTER_OTLP_ENDPOINT", raising=False)
    provider = TracerProvider()
    for processor in exporter():
        provider.add_span_processor(processor)
    with provider.get_tracer("test").start_as_current_span("hello"):
        pass
    provider.shutdown()
    (file,) = (tmp_path / "spans").glob("*.jsonl")
    (line,) = file.read_text("utf-8").splitlines()
    assert json.loads(line)["name"] == "hello"


def test_a_broken_exporter_is_not_taken_for_a_changed_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("opentelemetry.exporter.otlp.proto.http")
    module = "opentelemetry.exporter.otlp.proto.http.trace_exporter"
    monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(ImportError, match="trace_exporter"):
        exporter()


class _Receiver(BaseHTTPRequestHandler):
    """An OTLP endpoint; keeps what it is sent."""

    sent: list[tuple[str, bytes]]

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        self.sent.append((self.path, body))
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


def test_spans_go_to_an_otlp_endpoint_where_one_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("opentelemetry.exporter.otlp.proto.http")
    _Receiver.sent = []
    server = HTTPServer(("127.0.0.1", 0), _Receiver)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    provider = TracerProvider()
    for processor in exporter():
        provider.add_span_processor(processor)
    with provider.get_tracer("test").start_as_current_span("hello otlp"):
        pass
    provider.shutdown()
    server.shutdown()
    server.server_close()
    ((path, body),) = _Receiver.sent
    assert path == "/v1/traces"
    assert b"hello otlp" in (gzip.decompress(body) if body[:2] == b"\x1f\x8b" else body)


# The configurations.


@pytest.mark.parametrize("name", ["gpu", "cluster"])
def test_production_logs_json(name: str) -> None:
    config = yaml.safe_load((ROOT / f"configs/{name}.yaml").read_text("utf-8"))
    assert config["logging_config"]["encoding"] == "JSON"
