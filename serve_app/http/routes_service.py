"""Routes for whoever runs the service: probes and metrics."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from fastapi import APIRouter
from starlette.responses import Response

from serve_app.core.ports import SegmentationService
from serve_app.http.docs import Readiness, Status
from serve_app.http.errors import declared
from serve_app.http.formats import JSON_TYPE, to_json
from serve_app.http.work import Work

METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"


def service_router(
    service: SegmentationService, metrics: Callable[[], Awaitable[bytes]], work: Work
) -> APIRouter:
    """``/healthz``, ``/readyz``, ``/metrics``."""
    router = APIRouter(tags=["service"])

    @router.get("/healthz", summary="Whether the process lives", response_model=Status)
    async def healthz() -> Response:
        return Response(to_json({"status": "alive"}), media_type=JSON_TYPE)

    @router.get(
        "/readyz",
        summary="Whether the models are loaded",
        response_model=Readiness,
        responses={503: {"model": Readiness, "description": "still loading, or about to stop"}},
    )
    async def readyz() -> Response:
        """`draining` means that nothing new is begun, and `in_flight` how much is under way."""
        told: dict[str, Any] = {"status": "draining", "in_flight": work.in_flight}
        if not work.draining:
            told = {"status": "ready" if await service.ready() else "loading"}
        return Response(
            to_json(told),
            status_code=200 if told["status"] == "ready" else 503,
            media_type=JSON_TYPE,
        )

    @router.get(
        "/metrics",
        summary="Metrics in Prometheus' text format",
        response_class=Response,
        responses={
            200: {"content": {"text/plain": {"schema": {"type": "string"}}}},
            **declared(body=False),
        },
    )
    async def metrics_text() -> Response:
        return Response(await metrics(), headers={"content-type": METRICS_TYPE})

    return router
