"""Whether strangers could ask the service: what is told once, when it starts."""

from __future__ import annotations

from ipaddress import ip_address

from serve_app.core.settings import SecuritySettings


def exposure_warning(security: SecuritySettings, host: str | None) -> str | None:
    """What to tell whoever starts the service; None: all is well.

    Args:
        host: the address, or the name of one, that HTTP is bound to; None: no HTTP.
    """
    if host is None or security.api_keys or _is_loopback(host):
        return None
    return (
        f"HTTP is bound to {host} and no API keys are set (security.api_keys): whoever reaches "
        "that address can use the service. `python -m serve_app key NAME` makes a key; or bind "
        "http_options.host to 127.0.0.1 and let a front ask for credentials."
    )


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host.lower() == "localhost"
