"""HAProxy's configuration, written from `FrontSettings`."""

from __future__ import annotations

from collections.abc import Iterator

from serve_app.edge import answers
from serve_app.edge.answers import REQUEST_ID, REQUEST_ID_PATTERN, Answer
from serve_app.edge.program import FrontError
from serve_app.edge.settings import FrontSettings

BUFFER_BYTES = 16_384
"""HAProxy's buffer: what it holds of a request, whatever the request's size."""

_CIPHERS = (
    "ECDHE-ECDSA-AES128-GCM-SHA256:ECDHE-RSA-AES128-GCM-SHA256:ECDHE-ECDSA-AES256-GCM-SHA384:"
    "ECDHE-RSA-AES256-GCM-SHA384:ECDHE-ECDSA-CHACHA20-POLY1305:ECDHE-RSA-CHACHA20-POLY1305"
)

# Ray Serve obeys these: who may switch off its watch for clients that leave, or choose a replica?
_SERVES_HEADERS = ("x-request-disconnect-disabled", "serve-multiplexed-model-id", "x-session-id")
_TRACES = ("traceparent", "tracestate", "baggage")
_SERVES_PREFIXES = ("x-serve-router-", "x-haproxy-")

_MOST_LENGTH_DIGITS = 9
"""HAProxy reads a length into 32 bits: of more digits than these it may take it for a small one."""

_SOURCE = "src,ipmask(32,64)"
"""Who is counted: in IPv6 a network, since one host has all of its addresses to choose from."""

_DECIMAL = r"^[0-9]{1,9}([.][0-9]{1,9})?$"

_LOG = {
    "time": "%[date,utime(%Y-%m-%dT%H:%M:%SZ)]",
    "request_id": REQUEST_ID,
    "client": "%[src]",
    "method": "%[capture.req.method,json(utf8s)]",
    "path": "%[var(txn.path),json(utf8s)]",
    "server": "%s",
    "end": "%tsc",
}
_LOG_NUMBERS = {
    "status": "%ST", "bytes_in": "%U", "bytes_out": "%B", "ms": "%Ta", "service_ms": "%Tr",
    "connections": "%fc", "requests": "%bc",
}  # fmt: skip


def render(settings: FrontSettings, max_body_bytes: int) -> str:
    """The configuration file's text.

    Args:
        max_body_bytes: the service's own limit of a request's body.

    Raises:
        FrontError: that limit is more than HAProxy can hold a length to.
    """
    if max_body_bytes >= 10**_MOST_LENGTH_DIGITS:
        raise FrontError(
            f"limits.max_body_bytes is {max_body_bytes}; before HAProxy it must be less than "
            f"{10**_MOST_LENGTH_DIGITS}"
        )
    lines = [
        *_global(settings),
        *_defaults(settings),
        *_redirect(settings),
        *_public(settings, max_body_bytes),
        *_service(settings),
        *_tables(),
    ]
    return "\n".join(lines) + "\n"


def _ms(seconds: float) -> str:
    return f"{max(1, round(seconds * 1000))}ms"


def _reply(answer: Answer) -> str:
    """The common part of ``return`` and ``http-error``."""
    headers = "".join(f" hdr {name} {value}" for name, value in answer.headers.items())
    body = answer.body(REQUEST_ID)
    return f"status {answer.status} content-type application/json lf-string '{body}'{headers}"


def _refuse(answer: Answer, when: str) -> str:
    return f"    http-request return {_reply(answer)} if {when}"


def _global(settings: FrontSettings) -> Iterator[str]:
    yield "global"
    # HAProxy cuts what is longer, by default at 1,024 bytes: then it is no JSON.
    yield "    log stdout len 65535 format raw daemon info"
    yield f"    maxconn {settings.max_connections}"
    yield f"    nbthread {settings.threads}"
    yield f"    hard-stop-after {_ms(settings.drain_s)}"
    yield f"    tune.bufsize {BUFFER_BYTES}"
    yield "    tune.http.maxhdr 64"
    yield f"    ssl-default-bind-ciphers {_CIPHERS}"
    yield "    ssl-default-bind-options ssl-min-ver TLSv1.2 no-tls-tickets"


def _defaults(settings: FrontSettings) -> Iterator[str]:
    yield "defaults"
    yield "    mode http"
    yield "    log global"
    yield f"    log-format {_log_format()}"
    yield "    option dontlognull"
    # A client that leaves is told to the service, which then stops its work.
    yield "    option abortonclose"
    # An underscore may be read as a hyphen further on, and carry a name past the rules below.
    yield "    option http-restrict-req-hdr-names delete"
    # Tried again is what was never sent; a request that was sent may have been done.
    yield "    retries 2"
    yield "    option redispatch 1"
    yield "    retry-on conn-failure"
    yield "    timeout connect 2s"
    yield "    timeout check 5s"
    yield "    timeout queue 1s"
    yield f"    timeout http-request {_ms(settings.header_timeout_s)}"
    yield f"    timeout http-keep-alive {_ms(settings.keep_alive_s)}"
    yield f"    timeout client {_ms(settings.silence_timeout_s)}"
    yield "    timeout client-fin 2s"
    yield f"    timeout server {_ms(settings.answer_timeout_s)}"
    for answer in answers.OF_HAPROXY:
        yield f"    http-error {_reply(answer)}"


def _redirect(settings: FrontSettings) -> Iterator[str]:
    if settings.tls is None or settings.tls.redirect_from is None:
        return
    port = settings.bind.rpartition(":")[2]
    there = "%[req.hdr(host),regsub(:[0-9]+$,)]" + ("" if port == "443" else f":{port}")
    yield "frontend redirect"
    yield f"    bind {settings.tls.redirect_from} proto h1"
    # Whatever happens here, the other port keeps most of the connections that there are.
    yield f"    maxconn {max(1, settings.max_connections // 4)}"
    yield from _connections(settings)
    yield from _name_and_path()
    yield _refuse(answers.MALFORMED, "!{ req.hdr_cnt(host) eq 1 }")
    yield f"    http-request redirect code 308 location https://{there}%[pathq]"


def _public(settings: FrontSettings, max_body_bytes: int) -> Iterator[str]:
    yield "frontend public"
    # HTTP/1.1 alone: HAProxy holds HTTP/2's headers to no deadline.
    tls = f" ssl crt {settings.tls.certificate} alpn http/1.1" if settings.tls else ""
    yield f"    bind {settings.bind} proto h1{tls}"
    yield from _connections(settings)
    yield from _name_and_path()
    yield from _identity(settings)
    yield from _refusals(settings, max_body_bytes)
    yield "    default_backend service"


def _connections(settings: FrontSettings) -> Iterator[str]:
    """How many one source may have, those of both ports together."""
    trusted = " ".join(settings.trusted_proxies) or "255.255.255.255"
    yield f"    acl from_proxy src {trusted}"
    yield f"    tcp-request connection track-sc0 {_SOURCE} table connections unless from_proxy"
    most = 2 * settings.max_connections_per_source
    yield f"    tcp-request connection reject if {{ sc0_conn_cur gt {most} }}"


def _log_format() -> str:
    texts = [f'"{name}":"{what}"' for name, what in _LOG.items()]
    numbers = [f'"{name}":{what}' for name, what in _LOG_NUMBERS.items()]
    return "'{" + ",".join([*texts, *numbers]) + "}'"


def _name_and_path() -> Iterator[str]:
    """The request's id and path: known before anything is refused or logged."""
    sent = "req.fhdr(x-request-id)"
    yield (
        f"    http-request set-var(txn.request_id) {sent} if {{ req.fhdr_cnt(x-request-id) eq 1 }} "
        f"{{ {sent} -m reg {REQUEST_ID_PATTERN} }}"
    )
    yield (
        "    http-request set-var(txn.request_id) uuid() unless { var(txn.request_id) -m found }"
    )
    yield f"    http-request set-header x-request-id {REQUEST_ID}"
    yield f"    http-after-response set-header x-request-id {REQUEST_ID}"
    # As the service will read it: decoded once.
    yield "    http-request set-var(txn.path) path,url_dec"


def _identity(settings: FrontSettings) -> Iterator[str]:
    """Who asks, and what is not a client's to say."""
    if settings.tls is not None and settings.tls.hsts_s:
        age = f"max-age={settings.tls.hsts_s}"
        yield f"    http-after-response set-header strict-transport-security {age}"
    yield "    http-request set-var(txn.proxied) bool(true) if from_proxy"
    proxied = "{ var(txn.proxied) -m found }"
    for name in ("x-forwarded-for", "x-forwarded-proto"):
        yield f"    http-request del-header {name} unless {proxied}"
    yield f"    http-request set-src req.hdr_ip(x-forwarded-for,-1) if {proxied}"
    yield "    http-request set-header x-forwarded-for %[src]"
    scheme = "https" if settings.tls else "http"
    missing = "!{ req.hdr(x-forwarded-proto) -m found }"
    yield f"    http-request set-header x-forwarded-proto {scheme} if {missing}"
    # Serve takes one that is not positive for "no limit".
    limit = "x-request-timeout-seconds"
    plain = f"{{ req.fhdr({limit}) -m reg {_DECIMAL} }} {{ req.fhdr({limit}) -m reg [1-9] }}"
    yield f"    http-request del-header {limit} unless {{ req.fhdr_cnt({limit}) eq 1 }} {plain}"
    traces = () if settings.trust_traces else _TRACES
    for name in ("forwarded", "proxy", "upgrade", *traces, *_SERVES_HEADERS):
        yield f"    http-request del-header {name}"
    for prefix in _SERVES_PREFIXES:
        yield f"    http-request del-header {prefix} -m beg"


def _refusals(settings: FrontSettings, max_body_bytes: int) -> Iterator[str]:
    """Cheapest first; all before anything of the body is read."""
    yield _refuse(answers.MALFORMED, "!HTTP_1.0 !{ req.hdr_cnt(host) eq 1 }")
    # HAProxy takes chunks in HTTP/1.0, which has none: others would read them as a second request.
    yield _refuse(answers.MALFORMED, "HTTP_1.0 { req.hdr(transfer-encoding) -m found }")
    # Their end is not known before it is there, and may bring headers past the rules above.
    yield _refuse(answers.NO_LENGTH, "{ req.hdr(transfer-encoding) -m found }")
    # A router may take a path with a line's end for the path without.
    yield _refuse(answers.CONTROL, "{ path -m reg -i %([01][0-9a-f]|7f) }")
    yield _refuse(answers.METHOD, "METH_TRACE or METH_CONNECT")
    for path in settings.denied_paths:
        match = "-m beg" if path.endswith("/") else "-m end"
        yield _refuse(answers.DENIED, f"{{ var(txn.path) -i {match} {path} }}")
    too_large = answers.too_large(max_body_bytes)
    digits = "req.hdr(content-length),length"
    yield _refuse(too_large, f"{{ {digits} gt {_MOST_LENGTH_DIGITS} }}")
    length = "req.hdr_val(content-length)"
    yield _refuse(too_large, f"{{ {length} gt {max_body_bytes} }}")

    most = settings.max_connections_per_source
    yield _refuse(answers.TOO_MANY, f"{{ sc0_conn_cur gt {most} }}")
    proxied = "{ var(txn.proxied) -m found }"
    yield f"    http-request track-sc1 {_SOURCE} table requests if {proxied}"
    yield _refuse(answers.TOO_MANY, f"{{ sc1_conn_cur gt {most} }}")

    in_all = settings.max_requests_per_backend * len(settings.backends)
    yield _refuse(answers.FULL, f"{{ be_conn(service) ge {in_all} }}")
    large = f"{{ {length} gt {settings.large_body_bytes} }}"
    yield f"    http-request track-sc2 int(1) table large_bodies if {large}"
    yield _refuse(answers.FULL, f"{{ sc2_conn_cur gt {settings.max_large_bodies} }}")

    yield f"    http-request wait-for-body time {_ms(settings.body_timeout_s)}"


def _service(settings: FrontSettings) -> Iterator[str]:
    yield "backend service"
    yield "    balance leastconn"
    yield "    option httpchk GET /readyz"
    # A service that is too full even for its probe is there nevertheless.
    yield """    http-check expect rstring '"status": ?"ready"|dropped due to backpressure'"""
    yield (
        f"    default-server check inter {_ms(settings.check_interval_s)} fall 3 rise 1 "
        f"maxconn {settings.max_requests_per_backend} init-addr last,libc,none"
    )
    # Ray Serve's own answers are plain text; the application's are JSON already.
    for answer in (answers.TOO_SLOW, answers.FAILED, answers.FULL, answers.NO_TIME):
        foreign = "!{ res.hdr(content-type) -m beg application/json }"
        yield f"    http-response return {_reply(answer)} if {{ status {answer.status} }} {foreign}"
    for number, address in enumerate(settings.backends, 1):
        yield f"    server s{number} {address}"


def _tables() -> Iterator[str]:
    for name, kind, size in (
        ("connections", "ipv6", 100_000),
        ("requests", "ipv6", 100_000),
        ("large_bodies", "integer", 1),
    ):
        yield f"backend {name}"
        yield f"    stick-table type {kind} size {size} expire 60s store conn_cur"
