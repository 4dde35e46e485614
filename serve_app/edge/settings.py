"""What a front may be told: ``configs/front.yaml``, read strictly.

Every text here ends up in HAProxy's configuration, so each has a pattern that leaves no room for
a second directive.
"""

from __future__ import annotations

from ipaddress import ip_network
from pathlib import Path
from typing import Annotated

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints

_ADDRESS = r"^(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9]([A-Za-z0-9.-]{0,251}[A-Za-z0-9])?):[0-9]{1,5}$"


def _has_a_port(address: str) -> str:
    if not 0 < int(address.rpartition(":")[2]) < 2**16:
        raise ValueError("a port is a number from 1 to 65535")
    return address


def _is_network(text: str) -> str:
    return str(ip_network(text, strict=False))


_NETWORK = r"^[0-9A-Fa-f:.]+(/[0-9]{1,3})?$"  # no zone ("%eth0"), which may hold anything


Address = Annotated[str, StringConstraints(pattern=_ADDRESS), AfterValidator(_has_a_port)]
"""``host:port``; an IPv6 host stands in brackets."""

Network = Annotated[str, StringConstraints(pattern=_NETWORK), AfterValidator(_is_network)]
"""An address, or a network as 10.0.0.0/8."""

FilePath = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_./@+-]+$")]
UrlPath = Annotated[str, StringConstraints(pattern=r"^/[A-Za-z0-9_./~-]*$")]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class TlsSettings(_Strict):
    """How the front speaks TLS (1.2 with forward secrecy, or 1.3)."""

    certificate: FilePath = Field(
        description="PEM file with the certificate, its chain and the private key"
    )
    redirect_from: Address | None = Field(
        None, description="where plain HTTP is answered with a redirect to https; null: nowhere"
    )
    hsts_s: int = Field(
        31_536_000, ge=0, description="seconds of strict-transport-security; 0: not sent"
    )


class FrontSettings(_Strict):
    """The front's own bounds.  How large a body may be is the service's `limits.max_body_bytes`."""

    bind: Address = Field("127.0.0.1:8080", description="where clients connect")
    tls: TlsSettings | None = Field(None, description="null: plain HTTP")
    backends: tuple[Address, ...] = Field(
        ("127.0.0.1:8000",), min_length=1, description="the service: Ray Serve's HTTP ports"
    )
    threads: int = Field(1, ge=1, le=64, description="threads of HAProxy")

    header_timeout_s: float = Field(5.0, gt=0, description="until all headers of a request are in")
    body_timeout_s: float = Field(
        10.0, gt=0, description="from then until the body, or its first 15 KiB, is in"
    )
    silence_timeout_s: float = Field(
        15.0, gt=0, description="silence that ends a body under way, or an answer nobody reads"
    )
    answer_timeout_s: float = Field(
        300.0, gt=0, description="longest wait for the service; not less than its own limit"
    )
    keep_alive_s: float = Field(30.0, gt=0, description="how long an idle connection is kept")
    drain_s: float = Field(
        300.0, gt=0, description="time that requests under way have when the front stops"
    )

    max_connections: int = Field(2_048, ge=1, description="of all clients together")
    max_connections_per_source: int = Field(
        128,
        ge=1,
        description="connections of one address, in IPv6 of one /64 network; beyond it requests "
        "get 429, beyond twice as many connections are not taken",
    )
    max_requests_per_backend: int = Field(
        256,
        ge=1,
        description="requests in one backend; beyond it 503.  Less than the ingress replicas' "
        "max_ongoing_requests and max_queued_requests together: then the service never sheds by "
        "itself and its readiness probe always has a place",
    )
    max_large_bodies: int = Field(
        16,
        ge=1,
        description="requests with a body over `large_body_bytes` under way at once; beyond it "
        "503.  It bounds what uploads can take of the service's memory",
    )
    large_body_bytes: int = Field(
        4 * 2**20, ge=0, lt=10**9, description="what counts as a large body"
    )

    trusted_proxies: tuple[Network, ...] = Field(
        (), description="load balancers before this front, whose x-forwarded-for is believed"
    )
    trust_traces: bool = Field(
        False,
        description="clients' traceparent, tracestate and baggage are passed on: for callers of "
        "your own, who then decide what is traced",
    )
    denied_paths: tuple[UrlPath, ...] = Field(
        ("/-/", "/metrics"),
        description="answered with 404: all below a path that ends in a slash, else that path "
        "under any route prefix",
    )
    check_interval_s: float = Field(2.0, gt=0, description="between probes of a backend")


def load_front_settings(path: Path) -> FrontSettings:
    """The settings of a YAML file; an empty file is all defaults.

    Raises:
        OSError: the file cannot be read.
        yaml.YAMLError: it is not YAML.
        pydantic.ValidationError: an unknown setting, or a value out of its bounds.
    """
    return FrontSettings.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")) or {})
