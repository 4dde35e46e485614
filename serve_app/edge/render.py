"""Renders HAProxy's configuration: the template haproxy.cfg, filled in from `EdgeSettings`."""

from __future__ import annotations

from importlib import resources

from jinja2 import Environment, StrictUndefined

from serve_app.edge.haproxy import EdgeError
from serve_app.edge.settings import EdgeSettings

REQUEST_ID_PATTERN = r"^[A-Za-z0-9._:-]{1,64}$"
"""A client's own request id that is kept; the same rule as in `serve_app.http.middleware`."""

_BODY_BYTES_LIMIT = 10**9
"""HAProxy compares lengths as 32-bit numbers, so the template rejects those of ten digits."""


def render(settings: EdgeSettings, max_body_bytes: int) -> str:
    """Render the configuration file.

    Nothing is escaped: the patterns in `EdgeSettings` leave no character that could end a value.

    Args:
        settings: what an operator may choose.
        max_body_bytes: the service's limit of a request body.

    Returns:
        The text of the configuration file.

    Raises:
        EdgeError: `max_body_bytes` is larger than HAProxy can enforce.
    """
    if max_body_bytes >= _BODY_BYTES_LIMIT:
        raise EdgeError(
            f"limits.max_body_bytes is {max_body_bytes}; behind HAProxy it must be less than "
            f"{_BODY_BYTES_LIMIT}"
        )
    environment = Environment(  # noqa: S701  (not HTML)
        trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True, undefined=StrictUndefined
    )
    environment.filters["ms"] = lambda seconds: f"{max(1, round(seconds * 1000))}ms"
    template = resources.files("serve_app.edge").joinpath("haproxy.cfg").read_text("utf-8")
    return environment.from_string(template).render(
        dict(settings), max_body_bytes=max_body_bytes, request_id_pattern=REQUEST_ID_PATTERN
    )
