"""What reaches the service: one request each, with an id, without headers that mislead it."""

from __future__ import annotations

import httpx
import pytest

from serve_app.edge.settings import REQUEST_ID_PATTERN
from serve_app.http import middleware

from .running import (
    HANG_GUARD_S,
    LONG_TIMEOUTS,
    Backend,
    RawClient,
    RunningEdge,
    is_ready,
    wait_until,
)

HEAD = b"POST /v1/segment HTTP/1.1\r\nHost: a\r\n"
SMUGGLED = b"GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n"


def get(edge: RunningEdge, path: str, **headers: str) -> httpx.Response:
    return httpx.get(edge.url + path, headers=headers, trust_env=False, timeout=HANG_GUARD_S)


def test_a_valid_request_id_is_kept(edge: RunningEdge, backend: Backend) -> None:
    assert get(edge, "/healthz", **{"x-request-id": "A-1.b:c_2"}).headers["x-request-id"] == (
        "A-1.b:c_2"
    )
    assert backend.headers()["x-request-id"] == "A-1.b:c_2"


@pytest.mark.parametrize("sent", [None, "", "a b", "x" * 65, 'a"b', "a,b", "a%20b"])
def test_a_missing_or_invalid_request_id_is_replaced(
    edge: RunningEdge, backend: Backend, sent: str | None
) -> None:
    response = get(edge, "/healthz", **({} if sent is None else {"x-request-id": sent}))
    given = response.headers["x-request-id"]
    assert given not in ("", sent)
    assert middleware._REQUEST_ID.fullmatch(given)
    assert backend.headers()["x-request-id"] == given


def test_two_request_ids_are_replaced(edge: RunningEdge, backend: Backend) -> None:
    with RawClient(edge.port) as client:
        client.send(
            b"GET /healthz HTTP/1.1\r\nHost: a\r\nX-Request-Id: a\r\nX-Request-Id: b\r\n\r\n"
        )
        _, headers, _ = client.response()
    assert headers["x-request-id"] == backend.headers()["x-request-id"] not in ("a", "b", "a,b")


def test_edge_and_service_accept_the_same_request_ids() -> None:
    assert f"^{middleware._REQUEST_ID.pattern}$" == REQUEST_ID_PATTERN


def test_headers_that_ray_serve_obeys_and_false_origins_are_removed(
    edge: RunningEdge, backend: Backend
) -> None:
    forbidden = [
        "X-Request-Disconnect-Disabled: ?1", "Serve-Multiplexed-Model-Id: m", "X-Session-Id: s",
        "serve_multiplexed_model_id: m", "x_session_id: s", "X_Request_Disconnect_Disabled: ?1",
        "X-Serve-Router-Target: r", "X-HAProxy-Reload-Id: 1", "Forwarded: for=1.2.3.4",
        "Proxy: http://a", "Upgrade: websocket",
    ]  # fmt: skip
    sent = [
        *forbidden,
        "X-Forwarded-For: 1.2.3.4",
        "X-Forwarded-Proto: https",
        "X-Harmless: 1",
    ]
    with RawClient(edge.port) as client:
        client.send(
            b"GET /healthz HTTP/1.1\r\nHost: a\r\n" + "\r\n".join(sent).encode() + b"\r\n\r\n"
        )
        assert client.response()[0] == 200
    arrived = backend.headers()
    assert not {line.partition(":")[0].lower() for line in forbidden} & arrived.keys()
    assert arrived["x-harmless"] == "1"
    assert arrived["x-forwarded-for"] == "127.0.0.1"
    assert arrived["x-forwarded-proto"] == "http"


@pytest.mark.parametrize(
    "path",
    ["/metrics", "/METRICS", "/metrics/", "/metrics%2f", "/clicks/metrics", "/%6detrics",
     "/metrics?a=b", "/-/healthz", "/-/routes", "/%2D/routes", "/-%2froutes"],
)  # fmt: skip
def test_internal_routes_are_denied(edge: RunningEdge, backend: Backend, path: str) -> None:
    before = len(backend.received)
    response = get(edge, path)
    assert response.status_code == 404
    error = response.json()["error"]
    assert error["code"] == "not_found"
    assert error["request_id"] == response.headers["x-request-id"]
    assert len(backend.received) == before


def test_an_internal_route_in_absolute_form_is_denied(edge: RunningEdge) -> None:
    with RawClient(edge.port) as client:
        client.send(b"GET http://a/metrics HTTP/1.1\r\nHost: a\r\n\r\n")
        assert client.response()[0] == 404


@pytest.mark.parametrize("line", [b"TRACE / HTTP/1.1", b"CONNECT a:80 HTTP/1.1"])
def test_trace_and_connect_are_rejected(edge: RunningEdge, line: bytes) -> None:
    with RawClient(edge.port) as client:
        client.send(line + b"\r\nHost: a:80\r\n\r\n")
        status, _, body = client.response()
    assert (status, body["error"]["code"]) == (405, "method_not_allowed")


def test_an_upgrade_is_served_as_a_plain_request(edge: RunningEdge) -> None:
    with RawClient(edge.port) as client:
        client.send(
            b"GET /healthz HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
            b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
        )
        assert client.response()[0] == 200


AMBIGUOUS = {
    "two lengths": HEAD + b"Content-Length: 4\r\nContent-Length: 40\r\n\r\nabcd" + SMUGGLED,
    "a list of lengths": HEAD + b"Content-Length: 4, 40\r\n\r\nabcd" + SMUGGLED,
    "a signed length": HEAD + b"Content-Length: +4\r\n\r\nabcd" + SMUGGLED,
    "a length of 23 digits": HEAD + b"Content-Length: " + b"9" * 23 + b"\r\n\r\n" + SMUGGLED,
    "a space before the colon": HEAD + b"Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n" + SMUGGLED,
    "an unknown coding": HEAD + b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n" + SMUGGLED,
    "chunked within gzip": HEAD + b"Transfer-Encoding: chunked, gzip\r\n\r\n0\r\n\r\n" + SMUGGLED,
    "two codings": HEAD + b"Transfer-Encoding: chunked\r\n" * 2 + b"\r\n0\r\n\r\n" + SMUGGLED,
    "chunks of HTTP/1.0": HEAD.replace(b"1.1", b"1.0")
    + b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + SMUGGLED,
    "a negative chunk": HEAD + b"Transfer-Encoding: chunked\r\n\r\n-1\r\n\r\n" + SMUGGLED,
    "a chunk beyond 64 bits": HEAD + b"Transfer-Encoding: chunked\r\n\r\nfffffffffffffffff\r\n",
    "two hosts": b"GET /healthz HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n" + SMUGGLED,
    "no host in HTTP/1.2": b"GET /healthz HTTP/1.2\r\nConnection: close\r\n\r\n",
    "no host": b"GET /healthz HTTP/1.1\r\nConnection: close\r\n\r\n",
    "a NUL": b"GET /healthz HTTP/1.1\r\nHost: a\r\nX: a\0b\r\n\r\n" + SMUGGLED,
    "HTTP/2 without TLS": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "TLS where there is none": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    "headers beyond the buffer": b"GET /healthz HTTP/1.1\r\nHost: a\r\nX: " + b"a" * 20_000,
    "200 headers": b"GET /healthz HTTP/1.1\r\nHost: a\r\n" + b"X: 1\r\n" * 200 + b"\r\n",
}  # fmt: skip


@pytest.mark.parametrize("shape", AMBIGUOUS)
def test_a_request_that_two_servers_could_read_differently_is_rejected(
    edge: RunningEdge, backend: Backend, shape: str
) -> None:
    before = len(backend.received)
    with RawClient(edge.port) as client:
        client.send(AMBIGUOUS[shape])
        received = client.read_all()
    assert received.startswith((b"HTTP/1.1 400", b"HTTP/1.0 400")), received[:100]
    assert len(backend.received) == before


UNSAFE_TRAILERS = (
    b"X-Forwarded-For: 6.6.6.6\r\nX-Request-Disconnect-Disabled: ?1\r\nX-Session-Id: s\r\n"
    b"X-Request-Id: from-a-trailer\r\nAuthorization: Bearer key\r\n"
)
CHUNKED = {
    "beside a length": b"Content-Length: 6\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "with trailers": b"Transfer-Encoding: chunked\r\nTrailer: x-session-id\r\n\r\n2\r\n{}\r\n0\r\n"
    + UNSAFE_TRAILERS + b"\r\n",
    "with a long extension": b"Transfer-Encoding: chunked\r\n\r\n2;" + b"e" * 9_000
    + b"\r\n{}\r\n0\r\n\r\n",
}  # fmt: skip


@pytest.mark.parametrize("shape", CHUNKED)
def test_chunked_bodies_are_rejected_and_data_after_them_is_not_a_request(
    edge: RunningEdge, backend: Backend, shape: str
) -> None:
    before = len(backend.received)
    with RawClient(edge.port) as client:
        client.send(HEAD + CHUNKED[shape] + SMUGGLED)
        received = client.read_all()
    assert received.startswith(b"HTTP/1.1 411")
    assert received.count(b"HTTP/1.1 ") == 1
    assert len(backend.received) == before


@pytest.mark.parametrize(
    "target",
    [b"/metrics%0a", b"/metrics%0A", b"http://a/metrics%0a", b"/metrics%0d%0a", b"/metrics%00",
     b"/metrics%1f", b"/metrics%7f", b"/metrics%7F", b"/-/routes%0a", b"/healthz%0a"],
)  # fmt: skip
def test_a_control_character_in_the_path_is_rejected(
    edge: RunningEdge, backend: Backend, target: bytes
) -> None:
    """A router whose patterns end in ``$`` ignores a line break at the end."""
    before = len(backend.received)
    with RawClient(edge.port) as client:
        client.send(b"GET " + target + b" HTTP/1.1\r\nHost: a\r\n\r\n")
        status, _, body = client.response()
    assert (status, body["error"]["code"]) == (400, "malformed_request")
    assert len(backend.received) == before


@pytest.mark.parametrize("target", [b"/healthz?a=%0a", b"/no%20route%2f"])
def test_other_escapes_are_forwarded(edge: RunningEdge, backend: Backend, target: bytes) -> None:
    before = len(backend.received)
    with RawClient(edge.port) as client:
        client.send(b"GET " + target + b" HTTP/1.1\r\nHost: a\r\n\r\n")
        assert client.response()[0] in (200, 404)
    assert len(backend.received) == before + 1


@pytest.mark.parametrize("sent", ["2", "0.5", "120.25", "007"])
def test_a_valid_timeout_is_forwarded(edge: RunningEdge, backend: Backend, sent: str) -> None:
    assert get(edge, "/healthz", **{"x-request-timeout-seconds": sent}).status_code == 200
    assert backend.headers()["x-request-timeout-seconds"] == sent


@pytest.mark.parametrize(
    "sent", ["0", "-1", "0.0", "inf", "nan", "1e9", "1,2", "1_0", "2x", ".", ""]
)
def test_an_invalid_timeout_is_removed(edge: RunningEdge, backend: Backend, sent: str) -> None:
    """Ray Serve takes one that is not positive for "no limit"."""
    assert get(edge, "/healthz", **{"x-request-timeout-seconds": sent}).status_code == 200
    assert "x-request-timeout-seconds" not in backend.headers()


TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
TRACE_HEADERS = {"traceparent": TRACE, "tracestate": "a=b", "baggage": "c=d"}


def test_trace_headers_are_removed(edge: RunningEdge, backend: Backend) -> None:
    assert get(edge, "/healthz", **TRACE_HEADERS).status_code == 200
    assert not TRACE_HEADERS.keys() & backend.headers().keys()


def test_trace_headers_are_forwarded_with_trust_traces(backend: Backend) -> None:
    with RunningEdge([backend.port], LONG_TIMEOUTS | {"trust_traces": True}) as edge:
        wait_until(lambda: is_ready(edge), "the backend is healthy")
        get(edge, "/healthz", **TRACE_HEADERS)
        assert TRACE_HEADERS.items() <= backend.headers().items()


def test_a_folded_header_arrives_as_one_line(edge: RunningEdge, backend: Backend) -> None:
    with RawClient(edge.port) as client:
        client.send(b"GET /healthz HTTP/1.1\r\nHost: a\r\nX-A: b\r\n Content-Length: 5\r\n\r\n")
        assert client.response()[0] == 200
    assert "content-length" not in backend.headers()
    assert backend.headers()["x-a"].split() == ["b", "Content-Length:", "5"]


@pytest.mark.parametrize(
    ("path", "logged"),
    [
        ('/no"route', '/no"route'),
        ("/" + "a" * 3_000, "/" + "a" * 3_000),
        ('/"' * 6_000, "-"),  # as JSON larger than HAProxy's buffer
    ],
    ids=["quote", "long", "all quotes"],
)
def test_the_log_has_each_request_as_json(edge: RunningEdge, path: str, logged: str) -> None:
    name = f"log-test-{len(path)}"
    with RawClient(edge.port) as client:
        line = f"GET {path} HTTP/1.1\r\nHost: a\r\nX-Request-Id: {name}\r\n\r\n"
        client.send(line.encode())
        assert client.response()[0] == 404

    def rows() -> list[dict[str, object]]:
        return [row for row in edge.request_log() if row["request_id"] == name]

    wait_until(lambda: bool(rows()), "the request is logged")
    (row,) = rows()
    assert (row["method"], row["path"], row["status"]) == ("GET", logged, 404)
    assert row["client"] == "127.0.0.1"
