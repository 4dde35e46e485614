"""The settings of the edge (``configs/front.yaml``), and HAProxy's configuration from them.

Every text here is inserted into HAProxy's configuration, so each has a pattern without spaces,
quotes, line breaks or anything else that could start another argument or directive.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import resources
from ipaddress import ip_network
from typing import Annotated, ClassVar

from jinja2 import Environment, StrictUndefined
from pydantic import AfterValidator, ConfigDict, Field, StringConstraints

from serve_app.core.settings import Strict
from serve_app.edge.haproxy import EdgeError

REQUEST_ID_PATTERN = r"^[A-Za-z0-9._:-]{1,64}$"
"""A client's own request id that is kept; the same rule as in `serve_app.http.middleware`."""

_BODY_BYTES_LIMIT = 10**9
"""HAProxy compares lengths as 32-bit numbers, so the template rejects those of ten digits."""

_ADDRESS = r"^(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9]([A-Za-z0-9.-]{0,251}[A-Za-z0-9])?):[0-9]{1,5}$"
_NETWORK = r"^[0-9A-Fa-f:.]+(/[0-9]{1,3})?$"  # without IPv6 zones ("%eth0"): any text is a zone


def _check_port(address: str) -> str:
    if not 0 < int(address.rpartition(":")[2]) < 2**16:
        raise ValueError("a port is a number from 1 to 65535")
    return address


def _normalize_network(text: str) -> str:
    return str(ip_network(text, strict=False))


Address = Annotated[str, StringConstraints(pattern=_ADDRESS), AfterValidator(_check_port)]
"""``host:port``; an IPv6 host is in brackets."""

Network = Annotated[str, StringConstraints(pattern=_NETWORK), AfterValidator(_normalize_network)]
"""An IP address, or a network such as 10.0.0.0/8."""

FilePath = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_./@+-]+$")]
UrlPath = Annotated[str, StringConstraints(pattern=r"^/[A-Za-z0-9_./~-]*$")]


class _Strict(Strict):
    model_config = ConfigDict(allow_inf_nan=False)


class TlsSettings(_Strict):
    """TLS of the edge: 1.2 with forward secrecy, or 1.3."""

    certificate: FilePath = Field(
        description="PEM file with the certificate, its chain and the private key"
    )
    redirect_from: Address | None = Field(
        None, description="plain HTTP on this address is redirected to https; null: no redirect"
    )
    hsts_s: int = Field(
        31_536_000, ge=0, description="seconds of strict-transport-security; 0: not sent"
    )


class EdgeSettings(_Strict):
    """Settings of the edge.  The largest request body is the service's `limits.max_body_bytes`."""

    renamed_keys: ClassVar[Mapping[str, str]] = {
        "silence_timeout_s": "inactivity_timeout_s",
        "answer_timeout_s": "response_timeout_s",
    }

    bind: Address = Field("127.0.0.1:8080", description="address on which clients connect")
    tls: TlsSettings | None = Field(None, description="null: plain HTTP")
    backends: tuple[Address, ...] = Field(
        ("127.0.0.1:8000",), min_length=1, description="Ray Serve's HTTP addresses"
    )
    threads: int = Field(1, ge=1, le=64, description="HAProxy threads")

    header_timeout_s: float = Field(
        5.0, gt=0, description="until all headers of a request have arrived"
    )
    body_timeout_s: float = Field(
        10.0, gt=0, description="after the headers, until the body, or its first 15 KiB, is here"
    )
    inactivity_timeout_s: float = Field(
        15.0,
        gt=0,
        description="a client that neither sends the rest of its body nor reads the response "
        "for this time is disconnected",
    )
    response_timeout_s: float = Field(
        300.0,
        gt=0,
        description="longest wait for the service; at least its own `ingress.request_timeout_s`",
    )
    keep_alive_s: float = Field(30.0, gt=0, description="how long an idle connection stays open")
    drain_s: float = Field(
        300.0, gt=0, description="time for requests in flight to finish when the edge stops"
    )

    max_connections: int = Field(2_048, ge=1, description="connections of all clients")
    max_connections_per_source: int = Field(
        128,
        ge=1,
        description="connections of one IPv4 address or IPv6 /64 network; above it requests get "
        "429, above twice as many connections are rejected",
    )
    max_requests_per_backend: int = Field(
        256,
        ge=1,
        description="requests in flight in one backend; above it 503.  Keep it below the ingress "
        "replicas' max_ongoing_requests plus max_queued_requests: then the service never rejects "
        "requests by itself, and its readiness probe always gets through",
    )
    max_large_bodies: int = Field(
        16,
        ge=1,
        description="requests in flight with a body over `large_body_bytes`; above it 503.  It "
        "limits the service's memory for uploads",
    )
    large_body_bytes: int = Field(
        4 * 2**20, ge=0, lt=10**9, description="size above which a body counts as large"
    )

    trusted_proxies: tuple[Network, ...] = Field(
        (), description="trusted load balancers: x-forwarded-for is accepted from them"
    )
    trust_traces: bool = Field(
        False,
        description="forward clients' traceparent, tracestate and baggage; only for trusted "
        "callers, which then decide what is traced",
    )
    denied_paths: tuple[UrlPath, ...] = Field(
        ("/-/", "/metrics"),
        description="paths that get 404: a path that ends in a slash with everything below it, "
        "any other path under every route prefix",
    )
    check_interval_s: float = Field(2.0, gt=0, description="time between health checks")


def render(settings: EdgeSettings, max_body_bytes: int) -> str:
    """Render HAProxy's configuration file, with the service's limit of a request body.

    Nothing is escaped: the patterns in `EdgeSettings` leave no character that could end a value.

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
