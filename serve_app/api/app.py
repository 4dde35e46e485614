"""The HTTP interface: a FastAPI application over a `SegmentationService`."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from fastapi import FastAPI

from serve_app.api.docs import SamApi
from serve_app.api.errors import ErrorEnvelope, install
from serve_app.api.middleware import BodyLimit, RequestIds
from serve_app.api.routes_article import article_router
from serve_app.api.routes_service import service_router
from serve_app.api.routes_v1 import v1_router
from serve_app.domain.limits import Limits
from serve_app.ports import SegmentationService

_DESCRIPTION = """
Masks from points, boxes, earlier masks, text, or of everything in an image.

Coordinates are pixels of the upright image (EXIF rotation applied): x to the right, y down.
Every answer carries `x-request-id`; a client's own is kept.  Errors have one form:
`{"error": {"code", "message", "field", "request_id"}}`.
"""

_TAGS = [
    {"name": "segment", "description": "Masks"},
    {"name": "service", "description": "What is deployed, probes, metrics"},
    {"name": "article", "description": "Routes of the article that inspired this service"},
]


def create_app(
    service: SegmentationService,
    limits: Limits,
    *,
    metrics: Callable[[], Awaitable[bytes]],
    version: str,
) -> FastAPI:
    """The HTTP interface of a service.

    Args:
        service: who answers.
        limits: what a request may hold; refused here, before the service sees it.
        metrics: gives the process' metrics in Prometheus' text format.
        version: of this service, for the documents.
    """
    app = SamApi(
        title="Segment Anything",
        description=_DESCRIPTION,
        version=version,
        openapi_tags=_TAGS,
        redirect_slashes=False,
        responses={500: {"model": ErrorEnvelope, "description": "`internal_error`"}},
    )
    install(app)
    # The one added last is outermost: a refused body has its request id, too.
    app.add_middleware(BodyLimit, max_bytes=limits.max_body_bytes)
    app.add_middleware(RequestIds)
    app.include_router(v1_router(service, limits))
    app.include_router(article_router(service, limits, version))
    app.include_router(service_router(service, metrics))
    return app
