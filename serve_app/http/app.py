"""The HTTP interface: a FastAPI application over a `SegmentationService`."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from fastapi import FastAPI

from serve_app.capabilities import CAPABILITIES
from serve_app.connectors.article import article_router
from serve_app.core.capability import Capabilities
from serve_app.core.limits import Limits
from serve_app.core.ports import SegmentationService
from serve_app.core.settings import SecuritySettings
from serve_app.http.account import Account
from serve_app.http.admission import Admission
from serve_app.http.body_limit import BodyLimit
from serve_app.http.docs import SamApi
from serve_app.http.errors import ErrorEnvelope, install
from serve_app.http.keys import Keys
from serve_app.http.lingering import Lingering
from serve_app.http.middleware import RequestIds
from serve_app.http.patience import Patience
from serve_app.http.rates import Rates
from serve_app.http.routes_service import service_router
from serve_app.http.routes_v1 import v1_router
from serve_app.http.work import Work

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
    capabilities: Capabilities = CAPABILITIES,
    metrics: Callable[[], Awaitable[bytes]],
    version: str,
    security: SecuritySettings | None = None,
    work: Work | None = None,
) -> FastAPI:
    """The HTTP interface of a service.

    Args:
        service: who answers.
        limits: what a request may hold; refused here, before the service sees it.
        capabilities: what the service can be asked for.
        metrics: gives the process' metrics in Prometheus' text format.
        version: of this service, for the documents.
        security: who may ask, and how much; None: everybody, without bound.
        work: counts what is under way; None: nobody else wants to know.
    """
    security, work = security or SecuritySettings(), work or Work()
    app = SamApi(
        title="Segment Anything",
        description=_DESCRIPTION,
        version=version,
        openapi_tags=_TAGS,
        redirect_slashes=False,
        keys_needed=bool(security.api_keys),
        capabilities=capabilities,
        # FastAPI's own would cut a request's trace in two, and has paths and bodies in it.
        telemetry={"tracing": False, "metrics": False, "logs": False, "auto_configure": False},
        responses={500: {"model": ErrorEnvelope, "description": "`internal_error`"}},
    )
    install(app)
    # The one added last is outermost.  A request is named, counted, and then refused as early as
    # can be: whoever has no key costs no rate, whoever is over the rate no place, and who finds no
    # place keeps the body.
    app.add_middleware(BodyLimit, limits=limits)
    app.add_middleware(Patience, limits=limits)
    app.add_middleware(Admission, limits=limits, work=work)
    app.add_middleware(Rates, security=security)
    app.add_middleware(Keys, security=security)
    app.add_middleware(Account, templates=app.templates)
    app.add_middleware(RequestIds)
    app.add_middleware(Lingering, seconds=limits.linger_seconds, most=limits.max_lingering_requests)
    app.include_router(v1_router(service, limits, capabilities))
    app.include_router(article_router(service, limits, version))
    app.include_router(service_router(service, metrics, work))
    return app
