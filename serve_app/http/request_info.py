"""What is known about the current request, for the audit log, the metrics and the rate limit."""

from __future__ import annotations

from collections.abc import Callable, MutableMapping
from dataclasses import dataclass
from typing import Any

from starlette.requests import Request

TIMEOUT_HEADER = "x-request-timeout-seconds"
KEPT_TIMEOUT_HEADER = "x-sam-timeout-seconds"
"""The same, as it arrives behind Ray (`serve_app.deployments.compat.proxy`)."""

NONE = "-"
UNKNOWN_ROUTE = "unknown"
PROBES = frozenset({"/healthz", "/readyz", "/health"})
"""Routes that need no API key and are never rejected, however busy the service is."""


@dataclass(slots=True)
class RequestInfo:
    """Facts about one request; nothing of its image, its texts or its image ids.

    `AuditLogMiddleware` puts one into the request's scope; others fill it in as they learn more.

    Attributes:
        id: the request id, as in the response's ``x-request-id``.
        route: template of the route, not the requested path.
        key: name of the API key.
        error_code: of the error response; empty if there is none.
        variant: that served the request, not the requested one.
        prompts: prompts and texts, over all images.
        charge: takes this many more requests from the key's rate limit.
    """

    id: str = ""
    route: str = UNKNOWN_ROUTE
    key: str = NONE
    error_code: str = ""
    variant: str = NONE
    prompts: int = 0
    images: int = 0
    charge: Callable[[int], None] | None = None

    def record_size(self, *, images: int, prompts: int) -> None:
        """Record the size of the request once it is parsed, and charge for further images."""
        self.images, self.prompts = images, prompts
        if self.charge is not None and images > 1:
            self.charge(images - 1)


def request_info(scope_or_request: Request | MutableMapping[str, Any]) -> RequestInfo:
    """Return the request's info; a new, unconnected one where no middleware has set it."""
    if isinstance(scope_or_request, Request):
        scope_or_request = scope_or_request.scope
    info = scope_or_request.get("state", {}).get("request_info")
    return info if isinstance(info, RequestInfo) else RequestInfo()
