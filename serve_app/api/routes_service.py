"""Routes for whoever runs the service: probes and metrics."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from fastapi import APIRouter
from starlette.responses import Response

from serve_app.api.answers import Status
from serve_app.api.formats import JSON_TYPE, to_json
from serve_app.ports import SegmentationService

METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"


def service_router(
    service: SegmentationService, metrics: Callable[[], Awaitable[bytes]]
) -> APIRouter:
    """``/healthz``, ``/readyz``, ``/metrics``."""
    router = APIRouter(tags=["service"])

    @router.get("/healthz", summary="Whether the process lives", response_model=Status)
    async def healthz() -> Response:
        return Response(to_json({"status": "alive"}), media_type=JSON_TYPE)

    @router.get(
        "/readyz",
        summary="Whether the models are loaded",
        response_model=Status,
        responses={503: {"model": Status, "description": "still loading"}},
    )
    async def readyz() -> Response:
        ready = await service.ready()
        return Response(
            to_json({"status": "ready" if ready else "loading"}),
            status_code=200 if ready else 503,
            media_type=JSON_TYPE,
        )

    @router.get(
        "/metrics",
        summary="Metrics in Prometheus' text format",
        response_class=Response,
        responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}},
    )
    async def metrics_text() -> Response:
        return Response(await metrics(), headers={"content-type": METRICS_TYPE})

    return router
