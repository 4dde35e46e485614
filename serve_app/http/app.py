"""The HTTP interface: a FastAPI application over a `SegmentationService`."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

from fastapi import APIRouter, FastAPI
from starlette.middleware.cors import CORSMiddleware

from serve_app.capabilities import CAPABILITIES
from serve_app.core.capability import Capabilities
from serve_app.core.limits import Limits
from serve_app.core.ports import SegmentationService
from serve_app.core.settings import SecuritySettings
from serve_app.http.docs import SamApi
from serve_app.http.docs_page import docs_page_router
from serve_app.http.errors import ErrorEnvelope, register_exception_handlers
from serve_app.http.gate import KEY_HEADER, GateMiddleware, InFlightTracker
from serve_app.http.middleware import (
    AuditLogMiddleware,
    BodyLimitMiddleware,
    HeadMiddleware,
    SlowClientMiddleware,
    TrailingSlashMiddleware,
)
from serve_app.http.request_info import TIMEOUT_HEADER
from serve_app.http.routes import service_router, v1_router

Connector = Callable[[SegmentationService, Limits, str], APIRouter]
"""Makes the routes of another client's protocol; the last argument is the service's version."""

_DESCRIPTION = """
Masks from points, boxes, earlier masks, text, or of everything in an image.

Coordinates are pixels of the upright image (EXIF rotation applied): x to the right, y down.
Every response has an `x-request-id`; a client may send its own.  Errors have one form:
`{"error": {"code", "message", "field", "request_id"}}`.
"""

_SHOWN_TO_PAGES = ("x-request-id", "retry-after", "ratelimit", "ratelimit-policy")
"""Response headers that a page of another origin may read."""

_TAGS = [
    {"name": "segment", "description": "Masks"},
    {"name": "service", "description": "Deployed models, probes, metrics"},
    {"name": "article", "description": "Routes of the article that inspired this service"},
]


def create_app(
    service: SegmentationService,
    limits: Limits,
    *,
    capabilities: Capabilities = CAPABILITIES,
    metrics: Callable[[], Awaitable[bytes]],
    version: str,
    security: SecuritySettings | None = None,
    tracker: InFlightTracker | None = None,
    connectors: Sequence[Connector] = (),
) -> FastAPI:
    """Return the HTTP interface of a service.

    Args:
        limits: bounds on requests, checked before the service sees them.
        metrics: returns the process' metrics in Prometheus' text format.
        version: version of the service, for the documents.
        security: API keys and rate limits; None: open to everybody, without rate limits.
        tracker: counts requests in flight; None: a new one.
        connectors: routes of other clients' protocols.
    """
    security, tracker = security or SecuritySettings(), tracker or InFlightTracker()
    app = SamApi(
        title="Segment Anything",
        description=_DESCRIPTION,
        version=version,
        openapi_tags=_TAGS,
        redirect_slashes=False,
        docs_url=None,
        redoc_url=None,
        swagger_ui_oauth2_redirect_url=None,
        keys_needed=bool(security.api_keys),
        capabilities=capabilities,
        routers=(
            v1_router(service, limits, capabilities),
            *(connector(service, limits, version) for connector in connectors),
            service_router(service, metrics, tracker),
            docs_page_router("Segment Anything"),
        ),
        # FastAPI's own would split a request's trace in two, and records paths and bodies.
        telemetry={"tracing": False, "metrics": False, "logs": False, "auto_configure": False},
        responses={500: {"model": ErrorEnvelope, "description": "`internal_error`"}},
    )
    register_exception_handlers(app)
    # The one added last is outermost.
    app.add_middleware(HeadMiddleware)
    app.add_middleware(BodyLimitMiddleware, limits=limits)
    app.add_middleware(GateMiddleware, limits=limits, security=security, tracker=tracker)
    if security.allowed_origins:
        # Before the gate: a browser asks for permission without an API key.
        app.add_middleware(
            CORSMiddleware,
            allow_origins=security.allowed_origins,
            allow_methods=("GET", "HEAD", "POST"),
            allow_headers=("authorization", KEY_HEADER, TIMEOUT_HEADER, "x-request-id"),
            expose_headers=_SHOWN_TO_PAGES,
        )
    app.add_middleware(AuditLogMiddleware, templates=app.templates)
    app.add_middleware(SlowClientMiddleware, limits=limits)
    app.add_middleware(TrailingSlashMiddleware)
    return app
