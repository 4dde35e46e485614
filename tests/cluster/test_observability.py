"""What the service tells of itself, read where an operator reads it: metrics, logs, traces."""

from __future__ import annotations

import contextlib
import json
import socket
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from serve_app.telemetry import metrics as all_metrics
from serve_app.telemetry.metrics import Instrument

from .conftest import Served
from .ray_cluster import wait_until
from .replica_logs import lines, logs, who_wrote, whole_lines
from .test_http import new_photo, png, segment

pytestmark = [pytest.mark.cluster, pytest.mark.weights]

ARRIVES_S = 120.0
"""Ray gathers the figures of its processes every ten seconds; a busy machine is late with it."""
BOX = {"box": [110, 20, 330, 230]}
ONE_CLICK = {"point_coords": [[200, 120]], "point_labels": [1], "multimask_output": False}
"""The cascade of this cluster's ledger always wants to ask again for it."""

FAULTS = {
    "sam_retries_total": "tests/unit/test_observability.py",
    "sam_redis_operations_total": "tests/faults/test_redis.py",
    "sam_redis_breaker_open": "tests/faults/test_redis.py",
}
"""Metrics that tell of faults, and where it is tested that they do."""

SERVES_OWN = {
    "ray_serve_deployment_replica_healthy",
    "ray_serve_deployment_replica_starts_total",
    "ray_serve_replica_processing_queries",
}
PARTS = ("ingress", "fast-decoder", "fast-encoder")

Samples = dict[str, list[dict[str, str]]]


def instruments() -> dict[str, Instrument]:
    found = vars(all_metrics).values()
    return {i.name: i for i in found if isinstance(i, Instrument)}


def scraped(http: httpx.Client) -> Samples:
    """Labels of all samples by family, as Prometheus' own parser reads the page."""
    page = http.get("/metrics").raise_for_status().text
    samples: Samples = {}
    for family in text_string_to_metric_families(page):
        # The parser takes a counter's ending off its family.
        name = f"{family.name}_total" if family.type == "counter" else family.name
        samples.setdefault(name, []).extend(sample.labels for sample in family.samples)
    return samples


def told(samples: Samples, name: str, *labels: str) -> set[tuple[str, ...]]:
    """The values of some labels of one of our metrics."""
    return {tuple(found[label] for label in labels) for found in samples.get(f"ray_{name}", ())}


def announce_too_much(http: httpx.Client) -> None:
    """A body that is refused by its length, before any of it is sent."""
    url = http.base_url
    with socket.create_connection((url.host, url.port or 80), timeout=120) as connection:
        connection.sendall(
            b"POST /v1/segment HTTP/1.1\r\nhost: test\r\ncontent-type: application/json\r\n"
            b"content-length: 99999999999\r\n\r\n"
        )
        assert connection.recv(64).startswith(b"HTTP/1.1 413 ")


@pytest.fixture(scope="module")
def metrics(served: Served) -> Samples:
    """The page after a request of each kind."""
    with httpx.Client(base_url=served.url, timeout=300, trust_env=False) as http:
        image = new_photo()
        for _ in range(2):
            answer = segment(http, image, prompts=[BOX], variant="fast")
        body = {"image_id": answer["image_id"], "prompts": [ONE_CLICK]}
        http.post("/v1/segment", json=body).raise_for_status()
        http.post("/v1/embed", files={"file": png(new_photo())}).raise_for_status()
        announce_too_much(http)
        wanted = {f"ray_{name}" for name in instruments().keys() - FAULTS.keys()}
        found: Samples = {}

        def complete() -> bool:
            found.update(scraped(http))
            stages = told(found, "sam_stage_duration_seconds", "stage")
            # Each process's figures arrive on their own.
            lookups = told(found, "sam_cache_lookups_total", "cache", "result")
            queues = told(found, "sam_queue_items", "queue")
            return (
                wanted <= found.keys()
                and {("embed",), ("model",), ("open_image",)} <= stages
                and {("embedding", "miss"), ("embedding", "memory")} <= lookups
                and {("prompts",), ("images",)} <= queues
            )

        with contextlib.suppress(TimeoutError):  # whichever is missing has a test that says so
            wait_until(complete, "the metrics arrive", ARRIVES_S)
        return found


@pytest.mark.parametrize("name", sorted(instruments().keys() - FAULTS.keys()))
def test_each_metric_is_on_the_page_with_its_labels(metrics: Samples, name: str) -> None:
    wanted = {*instruments()[name].labels, "application", "deployment", "replica"}
    assert f"ray_{name}" in metrics
    for labels in metrics[f"ray_{name}"]:
        assert wanted <= labels.keys()
    assert ("sam",) in told(metrics, name, "application")


def test_who_tells_what(metrics: Samples) -> None:
    assert {("fast-decoder", "prompts"), ("fast-encoder", "images")} <= told(
        metrics, "sam_queue_items", "deployment", "queue"
    )
    assert {("embedding", "miss"), ("embedding", "memory"), ("image", "miss")} <= told(
        metrics, "sam_cache_lookups_total", "cache", "result"
    )
    assert told(metrics, "sam_escalations_total", "deployment") == {("ingress",)}
    assert {("fast", "encoder"), ("fast", "decoder")} <= told(
        metrics, "sam_variant_replicas", "variant", "half"
    )
    requests = told(metrics, "sam_requests_total", "deployment", "route", "status", "code")
    assert ("ingress", "/v1/segment", "200", "") in requests
    assert ("ingress", "/v1/segment", "413", "payload_too_large") in requests
    assert ("body_size",) in told(metrics, "sam_refusals_total", "reason")


def test_serves_own_metrics_are_there_that_dashboard_and_alerts_use(metrics: Samples) -> None:
    assert metrics.keys() >= SERVES_OWN


def test_a_scrape_of_rays_own_port_has_the_same_names(served: Served, metrics: Samples) -> None:
    """For a Prometheus that asks the nodes instead of the service."""
    found: set[str] = set()
    for address in ray_targets(served):
        page = httpx.get(f"http://{address}/metrics", trust_env=False).raise_for_status().text
        for family in text_string_to_metric_families(page):
            found.add(f"{family.name}_total" if family.type == "counter" else family.name)
    assert {name for name in metrics if name.startswith("ray_sam_")} <= found


def ray_targets(served: Served) -> list[str]:
    """Addresses in the file that Ray writes for Prometheus."""
    (file,) = served.cluster.folder.glob("prom_metrics_service_discovery.json")
    return [target for group in json.loads(file.read_text()) for target in group["targets"]]


# Logs.


def test_a_requests_id_is_in_the_logs_of_every_replica_on_its_way(
    served: Served, http: httpx.Client
) -> None:
    request_id = f"log-{uuid.uuid4()}"
    answer = ask(http, {"x-request-id": request_id})
    assert answer.headers.get_list("x-request-id") == [request_id]

    wait_until(
        lambda: set(PARTS) <= who_wrote(served, request_id),
        "the lines of all three are written",
        ARRIVES_S,
    )
    for fields in lines(served, request_id):
        assert {"asctime", "levelname", "message", "replica", "application"} <= fields.keys()


def test_without_an_id_of_the_client_logs_and_answer_have_one_and_the_same(
    served: Served, http: httpx.Client
) -> None:
    # What is no plain id is not taken over; from the application on, all use ours.
    for headers in ({}, {"x-request-id": "no plain id!"}):
        request_id = ask(http, headers).headers.get_list("x-request-id")[0]
        assert request_id != headers.get("x-request-id")
        wait_until(
            lambda wanted=request_id: bool(
                {"fast-decoder", "fast-encoder"} <= who_wrote(served, wanted)
            ),
            "the lines of both are written",
            ARRIVES_S,
        )


def ask(http: httpx.Client, headers: dict[str, str]) -> httpx.Response:
    """One prompt on an image that nobody knows: it goes through all three."""
    request = {"prompts": [BOX], "variant": "fast"}
    return http.post(
        "/v1/segment",
        files={"file": png(new_photo())},
        data={"request": json.dumps(request)},
        headers=headers,
    ).raise_for_status()


# Traces.


def spans(served: Served, wanted: Callable[[dict[str, Any]], bool]) -> list[dict[str, Any]]:
    """Finished spans of all processes."""
    return [
        span
        for path in logs(served).glob("spans/*.jsonl")
        for line in whole_lines(path)
        if wanted(span := json.loads(line))
    ]


def of_trace(served: Served, trace_id: str) -> list[dict[str, Any]]:
    """The spans of a trace, once those of all parts are written."""
    found: list[dict[str, Any]] = []

    def complete() -> bool:
        found[:] = spans(served, lambda s: s["context"]["trace_id"] == f"0x{trace_id}")
        handled = {s["attributes"].get("deployment") for s in found if is_call(s)}
        return set(PARTS) <= handled and {"wait", "pass"} <= {s["name"] for s in found}

    wait_until(complete, "the spans of ingress, decoder and encoder are written", ARRIVES_S)
    return found


def is_call(span: dict[str, Any]) -> bool:
    return bool(span["name"].startswith("replica_handle_request"))


def check_connected(found: list[dict[str, Any]], root: str | None) -> None:
    """Each span's parent is another of them, but for the first one's, which is ``root``."""
    by_id = {span["context"]["span_id"]: span for span in found}
    outside = {s["parent_id"] for s in found if s["parent_id"] not in by_id}
    assert outside == {root}
    for below, above in zip(PARTS[1:], PARTS[:-1], strict=True):
        for span in found:
            if is_call(span) and span["attributes"]["deployment"] == below:
                assert above in {s["attributes"].get("deployment") for s in upwards(span, by_id)}


def upwards(span: dict[str, Any], by_id: dict[str, Any]) -> Iterator[dict[str, Any]]:
    while (parent := by_id.get(span["parent_id"])) is not None:
        yield parent
        span = parent


def test_one_request_is_one_trace_of_three_replicas(served: Served, http: httpx.Client) -> None:
    request_id = f"trace-{uuid.uuid4()}"
    ask(http, {"x-request-id": request_id})

    def first() -> list[dict[str, Any]]:
        return spans(
            served, lambda s: is_call(s) and s["attributes"].get("request_id") == request_id
        )

    wait_until(lambda: bool(first()), "a span of the request is written", ARRIVES_S)
    trace_id = first()[0]["context"]["trace_id"].removeprefix("0x")
    found = of_trace(served, trace_id)
    check_connected(found, None)
    assert {"open_image", "predict", "embed", "decode_masks"} <= {s["name"] for s in found}
    assert {s["context"]["trace_id"] for s in first()} == {f"0x{trace_id}"}
    assert {s["resource"]["attributes"]["service.name"] for s in found} == {"sam-serve"}


def test_a_clients_trace_goes_on_in_ours(served: Served, http: httpx.Client) -> None:
    trace_id, span_id = uuid.uuid4().hex, uuid.uuid4().hex[:16]
    ask(http, {"traceparent": f"00-{trace_id}-{span_id}-01"})
    check_connected(of_trace(served, trace_id), f"0x{span_id}")


def test_a_client_that_does_not_trace_is_not_traced(served: Served, http: httpx.Client) -> None:
    """And no replica begins a trace of its own for what the ingress left out."""
    quiet, loud = uuid.uuid4().hex, uuid.uuid4().hex
    request_id = f"quiet-{uuid.uuid4()}"
    span_id = uuid.uuid4().hex[:16]
    quiet_parent = f"00-{quiet}-{span_id}-00"
    ask(http, {"traceparent": quiet_parent, "x-request-id": request_id})
    ask(http, {"traceparent": f"00-{loud}-{span_id}-01"})
    of_trace(served, loud)  # was later, and is written
    assert spans(served, lambda s: s["attributes"].get("request_id") == request_id) == []
