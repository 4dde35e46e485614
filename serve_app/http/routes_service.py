"""Routes for operators: probes and metrics."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from fastapi import APIRouter
from starlette.responses import Response

from serve_app.core.ports import SegmentationService
from serve_app.http.docs import Readiness, Status, error_responses
from serve_app.http.formats import JSON_TYPE, to_json
from serve_app.http.gate import InFlightTracker

METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"


def service_router(
    service: SegmentationService, metrics: Callable[[], Awaitable[bytes]], tracker: InFlightTracker
) -> APIRouter:
    """Return the routes ``/healthz``, ``/readyz`` and ``/metrics``."""
    router = APIRouter(tags=["service"])

    @router.get("/healthz", summary="Liveness: whether the process runs", response_model=Status)
    async def healthz() -> Response:
        return Response(to_json({"status": "alive"}), media_type=JSON_TYPE)

    @router.get(
        "/readyz",
        summary="Readiness: whether the models are loaded",
        response_model=Readiness,
        responses={503: {"model": Readiness, "description": "still loading, or draining"}},
    )
    async def readyz() -> Response:
        """`draining`: new requests are rejected; `in_flight` requests are still being served."""
        body: dict[str, Any] = {"status": "draining", "in_flight": tracker.in_flight}
        if not tracker.draining:
            body = {"status": "ready" if await service.ready() else "loading"}
        status_code = 200 if body["status"] == "ready" else 503
        return Response(to_json(body), status_code=status_code, media_type=JSON_TYPE)

    @router.get(
        "/metrics",
        summary="Metrics in Prometheus' text format",
        response_class=Response,
        responses={
            200: {"content": {"text/plain": {"schema": {"type": "string"}}}},
            **error_responses(body=False),
        },
    )
    async def metrics_text() -> Response:
        return Response(await metrics(), headers={"content-type": METRICS_TYPE})

    return router
