"""The warning at startup about a service that is reachable without API keys."""

from __future__ import annotations

from ipaddress import ip_address

from serve_app.core.settings import SecuritySettings


def exposure_warning(security: SecuritySettings, host: str | None) -> str | None:
    """The warning to log at startup; None: access is restricted.

    Args:
        host: address or host name that HTTP is bound to; None: unknown.
    """
    if security.api_keys or (host is not None and _is_loopback(host)):
        return None
    bound = "an address that ingress.http_host does not name" if host is None else host
    return (
        f"HTTP is bound to {bound} and no API keys are set (security.api_keys): any client "
        "that can reach this address can use the service. Create a key with `python -m serve_app "
        "key NAME`, or bind http_options.host to 127.0.0.1 behind a proxy that authenticates."
    )


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host.lower() == "localhost"
