"""Probes, metrics, models, the OpenAPI document, and what may be imported."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from fastapi.openapi.models import OpenAPI

from serve_app.capabilities import Everything, SegmentRequest
from serve_app.core.errors import InvalidRequest

ROUTES = {
    "/v1/segment": "post",
    "/v1/embed": "post",
    "/v1/segment/batch": "post",
    "/v1/models": "get",
    "/healthz": "get",
    "/readyz": "get",
    "/metrics": "get",
    "/segment": "post",
    "/segment_batch": "post",
    "/health": "get",
}


def test_the_routes_are_known_without_the_document(app):
    """It takes long to make; the first request does not wait for it."""
    templates = app.templates()
    assert app.openapi_schema is None
    assert {*app.openapi()["paths"]} == set(ROUTES) <= set(templates)
    assert {"/docs", "/openapi.json"} <= set(templates) - set(ROUTES)


async def test_healthz_lives_without_the_service(client, service):
    service.is_ready = False
    service.failure = RuntimeError()
    assert (await client.get("/healthz")).status_code == 200


async def test_readyz_is_the_services_word(client, service):
    answer = await client.get("/readyz")
    assert (answer.status_code, answer.json()) == (200, {"status": "ready"})
    service.is_ready = False
    answer = await client.get("/readyz")
    assert (answer.status_code, answer.json()) == (503, {"status": "loading"})


async def test_metrics(client):
    answer = await client.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    assert "sam_requests 7" in answer.text


async def test_models(client):
    told = (await client.get("/v1/models")).json()
    assert told["variants"]["fast"] == {"model": "vit_t", "sources": ["local"]}


def _refs(node: Any) -> Iterator[str]:
    if isinstance(node, dict):
        if isinstance(node.get("$ref"), str):
            yield node["$ref"]
        for child in node.values():
            yield from _refs(child)
    elif isinstance(node, list):
        for child in node:
            yield from _refs(child)


async def test_the_openapi_document(client):
    document = (await client.get("/openapi.json")).json()
    OpenAPI.model_validate(document)
    assert document["info"]["version"] == "9.8.7"
    assert {path: next(iter(ops)) for path, ops in document["paths"].items()} == ROUTES
    schemas = document["components"]["schemas"]
    assert set(_refs(document)) <= {f"#/components/schemas/{name}" for name in schemas}
    for path, method in ROUTES.items():
        operation = document["paths"][path][method]
        assert operation["tags"], path
        for status, response in operation["responses"].items():
            if int(status) >= 400 and (path, status) != ("/readyz", "503"):
                schema = response["content"]["application/json"]["schema"]
                assert schema == {"$ref": "#/components/schemas/ErrorEnvelope"}, (path, status)
        if method == "post":
            assert {"401", "408", "413", "429", "500", "503"} <= operation["responses"].keys()
            assert "multipart/form-data" in operation["requestBody"]["content"]
    segment = document["paths"]["/v1/segment"]["post"]
    assert segment["responses"].keys() == {
        *("200", "400", "401", "404", "408", "413", "422", "429", "500", "503", "504")
    }
    assert segment["responses"]["200"]["content"].keys() == {
        *("application/json", "application/geo+json", "application/x-npz")
    }
    told = segment["responses"]["422"]["description"]
    assert "`hints_unmet`" in told
    assert "`overloaded`" in segment["responses"]["503"]["description"]
    for path in ("/v1/segment", "/v1/segment/batch", "/v1/embed"):
        (header,) = document["paths"][path]["post"]["parameters"]
        assert (header["name"], header["in"]) == ("x-request-timeout-seconds", "header")
    for hint in ("max_latency_ms", "min_quality"):
        assert schemas["SegmentBody"]["properties"][hint]["description"]
        form = segment["requestBody"]["content"]["multipart/form-data"]["schema"]
        assert hint in form["properties"]
    for answer in ("SegmentResult", "FeatureCollection", "NpzLine"):
        assert {"expected_ms", "degraded", "escalated"} <= schemas[answer]["properties"].keys()
    for result in ("PromptResult", "PromptSummary"):
        assert "variant" in schemas[result]["properties"]
    # The document is made once and stays the same.
    assert (await client.get("/openapi.json")).json() == document


async def test_docs(client):
    assert (await client.get("/docs")).status_code == 200


async def test_the_documented_forms_can_be_filled_in_a_page(client):
    """Swagger UI writes `string` into a field without example, and joins a list by commas."""
    paths = (await client.get("/openapi.json")).json()["paths"]
    for path in ("/v1/segment", "/v1/segment/batch", "/v1/embed", "/segment", "/segment_batch"):
        form = paths[path]["post"]["requestBody"]["content"]["multipart/form-data"]
        fields = form["schema"]["properties"]
        files = {name for name in fields if name in ("file", "files")}
        assert all(fields[name]["examples"] == [""] for name in fields.keys() - files)
        assert all(fields[name]["description"] for name in fields.keys() - files)
        lists = fields.keys() & {"box", "point_coords", "point_labels", "text", "channel"}
        assert lists <= form["encoding"].keys() <= fields.keys()
        assert {one["contentType"] for one in form["encoding"].values()} <= {"application/json"}


def test_the_interface_imports_neither_torch_nor_ray():
    code = (
        "import sys, serve_app.http.app\n"
        "print([m for m in ('torch', 'ray', 'onnxruntime', 'timm') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("points_per_side", 0),
        ("points_per_side", 1.5),
        ("points_per_batch", 0),
        ("crop_n_layers", -1),
        ("crop_n_points_downscale_factor", 0),
        ("min_mask_region_area", -1),
        ("pred_iou_thresh", 1.1),
        ("stability_score_thresh", -0.1),
        ("box_nms_thresh", float("nan")),
        ("mode", "slow"),
        ("crop_nms_thresh", 2),
        ("stability_score_offset", 0),
        ("stability_score_offset", float("inf")),
        ("crop_overlap_ratio", 1),
    ],
)
def test_everything_is_checked_for_python_callers_too(name, value):
    with pytest.raises(InvalidRequest) as caught:
        Everything(**{name: value})
    assert caught.value.field == f"everything.{name}"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *((name, 0) for name in ("max_latency_ms", "min_quality", "timeout_s")),
        *((name, float("nan")) for name in ("max_latency_ms", "min_quality", "timeout_s")),
        ("max_latency_ms", float("inf")),
        ("min_quality", 1.001),
        ("timeout_s", -1),
    ],
)
def test_hints_are_checked_for_python_callers_too(name, value):
    with pytest.raises(InvalidRequest) as caught:
        SegmentRequest(image="a", task=Everything(), **{name: value})
    assert caught.value.field == name
