"""What reaches the service: one request each, with an id, under no false flag."""

from __future__ import annotations

import httpx
import pytest

from serve_app.api import middleware
from serve_app.front.answers import REQUEST_ID_PATTERN

from .running import Backend, Raw, RunningFront, wait_until

HEAD = b"POST /v1/segment HTTP/1.1\r\nHost: a\r\n"
SMUGGLED = b"GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n"


def get(front: RunningFront, path: str, **headers: str) -> httpx.Response:
    return httpx.get(front.url + path, headers=headers, trust_env=False, timeout=30)


def test_a_plain_request_id_is_kept(front: RunningFront, backend: Backend) -> None:
    assert get(front, "/healthz", **{"x-request-id": "A-1.b:c_2"}).headers["x-request-id"] == (
        "A-1.b:c_2"
    )
    assert backend.headers()["x-request-id"] == "A-1.b:c_2"


@pytest.mark.parametrize("sent", [None, "", "a b", "x" * 65, 'a"b', "a,b", "a%20b"])
def test_a_missing_or_odd_request_id_is_replaced(
    front: RunningFront, backend: Backend, sent: str | None
) -> None:
    answer = get(front, "/healthz", **({} if sent is None else {"x-request-id": sent}))
    given = answer.headers["x-request-id"]
    assert given not in ("", sent)
    assert middleware._REQUEST_ID.fullmatch(given)
    assert backend.headers()["x-request-id"] == given


def test_two_request_ids_are_replaced_by_one(front: RunningFront, backend: Backend) -> None:
    with Raw(front.port) as client:
        client.send(
            b"GET /healthz HTTP/1.1\r\nHost: a\r\nX-Request-Id: a\r\nX-Request-Id: b\r\n\r\n"
        )
        _, headers, _ = client.answer()
    assert headers["x-request-id"] == backend.headers()["x-request-id"] not in ("a", "b", "a,b")


def test_the_rule_for_ids_is_that_of_the_service() -> None:
    assert f"^{middleware._REQUEST_ID.pattern}$" == REQUEST_ID_PATTERN


def test_headers_that_ray_serve_obeys_and_false_origins_do_not_pass(
    front: RunningFront, backend: Backend
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
    with Raw(front.port) as client:
        client.send(
            b"GET /healthz HTTP/1.1\r\nHost: a\r\n" + "\r\n".join(sent).encode() + b"\r\n\r\n"
        )
        assert client.answer()[0] == 200
    arrived = backend.headers()
    assert not {line.partition(":")[0].lower() for line in forbidden} & arrived.keys()
    assert arrived["x-harmless"] == "1"
    assert arrived["x-forwarded-for"] == "127.0.0.1"
    assert arrived["x-forwarded-proto"] == "http"


@pytest.mark.parametrize(
    "path",
    ["/metrics", "/METRICS", "/clicks/metrics", "/%6detrics", "/metrics?a=b", "/-/healthz",
     "/-/routes", "/%2D/routes", "/-%2froutes"],
)  # fmt: skip
def test_internal_routes_are_denied(front: RunningFront, backend: Backend, path: str) -> None:
    before = len(backend.seen)
    answer = get(front, path)
    assert answer.status_code == 404
    error = answer.json()["error"]
    assert error["code"] == "not_found"
    assert error["request_id"] == answer.headers["x-request-id"]
    assert len(backend.seen) == before


def test_an_internal_route_in_absolute_form_is_denied(front: RunningFront) -> None:
    with Raw(front.port) as client:
        client.send(b"GET http://a/metrics HTTP/1.1\r\nHost: a\r\n\r\n")
        assert client.answer()[0] == 404


@pytest.mark.parametrize("line", [b"TRACE / HTTP/1.1", b"CONNECT a:80 HTTP/1.1"])
def test_methods_of_proxies_are_refused(front: RunningFront, line: bytes) -> None:
    with Raw(front.port) as client:
        client.send(line + b"\r\nHost: a:80\r\n\r\n")
        status, _, body = client.answer()
    assert (status, body["error"]["code"]) == (405, "method_not_allowed")


def test_an_upgrade_is_served_as_the_plain_request_that_it_is(front: RunningFront) -> None:
    with Raw(front.port) as client:
        client.send(
            b"GET /healthz HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
            b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
        )
        assert client.answer()[0] == 200


REFUSED = {
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
    "no host": b"GET /healthz HTTP/1.1\r\nConnection: close\r\n\r\n",
    "a NUL": b"GET /healthz HTTP/1.1\r\nHost: a\r\nX: a\0b\r\n\r\n" + SMUGGLED,
    "HTTP/2 without TLS": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "TLS where there is none": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    "headers beyond the buffer": b"GET /healthz HTTP/1.1\r\nHost: a\r\nX: " + b"a" * 20_000,
    "200 headers": b"GET /healthz HTTP/1.1\r\nHost: a\r\n" + b"X: 1\r\n" * 200 + b"\r\n",
}  # fmt: skip


@pytest.mark.parametrize("shape", REFUSED)
def test_a_request_that_two_servers_could_read_differently_is_refused(
    front: RunningFront, backend: Backend, shape: str
) -> None:
    before = len(backend.seen)
    with Raw(front.port) as client:
        client.send(REFUSED[shape])
        received = client.read_all()
    assert received.startswith((b"HTTP/1.1 400", b"HTTP/1.0 400")), received[:100]
    assert len(backend.seen) == before


def test_with_a_length_and_chunks_the_chunks_count_and_the_connection_ends(
    front: RunningFront, backend: Backend
) -> None:
    """By length the second request would be part of the body; by chunks it would be another."""
    before = len(backend.seen)
    with Raw(front.port) as client:
        client.send(
            HEAD + b"Content-Length: 6\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + SMUGGLED
        )
        received = client.read_all()
    assert received.count(b"HTTP/1.1 ") == 1
    assert [path for path, _ in backend.seen[before:]] == ["/v1/segment"]
    assert backend.headers().keys() >= {"transfer-encoding"}
    assert "content-length" not in backend.headers()


def test_a_folded_header_arrives_as_one_line(front: RunningFront, backend: Backend) -> None:
    with Raw(front.port) as client:
        client.send(b"GET /healthz HTTP/1.1\r\nHost: a\r\nX-A: b\r\n Content-Length: 5\r\n\r\n")
        assert client.answer()[0] == 200
    assert "content-length" not in backend.headers()
    assert backend.headers()["x-a"].split() == ["b", "Content-Length:", "5"]


def test_the_log_has_each_request_as_json(front: RunningFront) -> None:

    get(front, '/no"route', **{"x-request-id": "of-the-log"})

    def line() -> list[dict[str, object]]:
        return [row for row in front.logged() if row["request_id"] == "of-the-log"]

    wait_until(lambda: bool(line()), "the request is logged")
    (row,) = line()
    assert (row["method"], row["path"], row["status"]) == ("GET", '/no"route', 404)
    assert row["client"] == "127.0.0.1"
