"""Too many requests at once, and a service that is down: clear errors with Retry-After."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from .running import (
    HANG_GUARD_S,
    LONG_TIMEOUTS,
    Backend,
    RawClient,
    RunningEdge,
    is_ready,
    wait_until,
)

FAST_CHECKS = {"check_interval_s": 0.2}
DISCARD_PORT = 9
"""Nothing listens here."""


class Gate:
    """An ASGI application that holds its responses until `released`, except those of /readyz.

    Attributes:
        released: set it to send all responses.
        ready: whether /readyz returns 200.
        not_ready_body: what /readyz returns otherwise, with 503.
        in_flight: requests that wait for `released`.
        disconnected: requests whose client disconnected while they waited.
        probes: number of requests for /readyz.
        reply: status, content type and body of all other responses.
    """

    def __init__(self) -> None:
        self.released = threading.Event()
        self.ready = True
        self.not_ready_body = b'{"status":"loading"}'
        self.in_flight = 0
        self.disconnected = 0
        self.probes = 0
        self.reply: tuple[int, bytes, bytes] = (200, b"application/json", b"{}")

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        status, kind, body = self.reply
        if scope["path"] == "/readyz":
            status = 200 if self.ready else 503
            body = b'{"status":"ready"}' if self.ready else self.not_ready_body
            self.probes += 1
        else:
            self.in_flight += 1
            while (await receive()).get("more_body"):
                pass
            disconnect = asyncio.ensure_future(receive())
            while not self.released.is_set() and not disconnect.done():
                await asyncio.wait([disconnect], timeout=0.01)
            self.in_flight -= 1
            self.disconnected += disconnect.done()
            disconnect.cancel()
        headers = [(b"content-type", kind), (b"content-length", str(len(body)).encode())]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})


@contextmanager
def gated_edge(command: bool = False, **settings: Any) -> Iterator[tuple[Gate, RunningEdge]]:
    """An edge in front of a `Gate`."""
    gate = Gate()
    backend = Backend(gate)
    try:
        with RunningEdge([backend.port], LONG_TIMEOUTS | settings, command=command) as edge:
            wait_until(lambda: is_ready(edge), "the backend is healthy")
            yield gate, edge
    finally:
        gate.released.set()
        backend.stop()


def assert_rejected(edge: RunningEdge, status: int, code: str, **request: Any) -> None:
    response = httpx.post(
        f"{edge.url}/v1/segment", trust_env=False, timeout=HANG_GUARD_S, **request
    )
    error = response.json()["error"]
    assert (response.status_code, error["code"]) == (status, code)
    assert error["request_id"] == response.headers["x-request-id"] != ""
    assert int(response.headers["retry-after"]) >= 1


def send_request(
    stack: ExitStack, edge: RunningEdge, source: str = "127.0.0.1", size: int = 0
) -> RawClient:
    """Send a POST with a body of `size` bytes over a new connection, which `stack` closes."""
    client = stack.enter_context(RawClient(edge.port, source))
    client.send(b"POST /a HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % size + b"a" * size)
    return client


def test_connections_of_one_address_are_limited_and_others_are_served() -> None:
    with gated_edge(max_connections_per_source=4) as (gate, edge), ExitStack() as stack:
        clients = [send_request(stack, edge) for _ in range(4)]
        wait_until(lambda: gate.in_flight == 4, "four requests are in flight")
        assert_rejected(edge, 429, "too_many_requests")
        other = send_request(stack, edge, source="127.0.0.2")
        wait_until(lambda: gate.in_flight == 5, "another address is served")
        gate.released.set()
        assert {client.response()[0] for client in (*clients, other)} == {200}


def statuses_of(
    stack: ExitStack, edge: RunningEdge, port: int, source: str, accepted: int, rejected: int
) -> list[int]:
    """Open connections, then send a request on each; status 0: the connection was rejected."""
    clients: list[RawClient | None] = []
    for _ in range(accepted + rejected):
        try:
            clients.append(stack.enter_context(RawClient(port, source)))
        except ConnectionResetError:
            clients.append(None)
    wait_until(
        lambda: edge.open_connections().get(source) == accepted,
        f"HAProxy has accepted {accepted} connections of {source}",
    )
    for client in clients:
        if client is not None:
            client.send(b"GET /readyz HTTP/1.1\r\nHost: a\r\n\r\n")
    return [0 if client is None else client.response()[0] for client in clients]


def test_above_twice_the_limit_connections_are_rejected() -> None:
    with gated_edge(max_connections_per_source=2) as (_, edge), ExitStack() as stack:
        found = statuses_of(stack, edge, edge.port, "127.0.0.2", accepted=4, rejected=4)
        assert found == [429] * 4 + [0] * 4
        assert is_ready(edge)


def test_behind_a_trusted_proxy_clients_are_counted_separately() -> None:
    settings = {"max_connections_per_source": 1, "trusted_proxies": ["127.0.0.0/8"]}
    with gated_edge(**settings) as (gate, edge), ExitStack() as stack:
        one = stack.enter_context(RawClient(edge.port))
        one.send(b"GET /a HTTP/1.1\r\nHost: a\r\nX-Forwarded-For: 9.9.9.9, 1.2.3.4\r\n\r\n")
        wait_until(lambda: gate.in_flight == 1, "it is in flight")
        assert_rejected(edge, 429, "too_many_requests", headers={"x-forwarded-for": "1.2.3.4"})
        two = stack.enter_context(RawClient(edge.port))
        two.send(b"GET /a HTTP/1.1\r\nHost: a\r\nX-Forwarded-For: 1.2.3.4, 5.6.7.8\r\n\r\n")
        wait_until(lambda: gate.in_flight == 2, "another client of the same proxy is served")


def test_an_ipv6_network_counts_as_one_client() -> None:
    """A host can use any address of its /64 network."""
    settings = {"max_connections_per_source": 1, "trusted_proxies": ["127.0.0.0/8"]}
    with gated_edge(**settings) as (gate, edge), ExitStack() as stack:

        def assert_served(address: str) -> None:
            client = stack.enter_context(RawClient(edge.port))
            expected = gate.in_flight + 1
            head = f"GET /a HTTP/1.1\r\nHost: a\r\nX-Forwarded-For: {address}\r\n\r\n"
            client.send(head.encode())
            wait_until(lambda: gate.in_flight == expected, f"{address} is in flight")

        assert_served("2001:db8::1")
        same_network = {"x-forwarded-for": "2001:db8::ffff:ffff:ffff:ffff"}
        assert_rejected(edge, 429, "too_many_requests", headers=same_network)
        # Another network; and IPv4-mapped addresses, which do not form one network.
        for other in ("2001:db8:0:1::1", "::ffff:1.2.3.4", "::ffff:1.2.3.5"):
            assert_served(other)


@pytest.mark.skipif(not Path("/proc/net/if_inet6").exists(), reason="a machine without IPv6")
def test_connections_are_counted_by_ipv4_address_and_by_ipv6_network() -> None:
    with RunningEdge([DISCARD_PORT], host="[::]") as edge, ExitStack() as stack:
        for source in ("127.0.0.1", "127.0.0.2", "::1"):
            destination = "::1" if source == "::1" else "127.0.0.1"
            stack.enter_context(
                socket.create_connection((destination, edge.port), source_address=(source, 0))
            )
        counted = {"127.0.0.1", "127.0.0.2", "::"}
        wait_until(
            lambda: {key for key, n in edge.open_connections().items() if n} == counted,
            f"the table has {counted}",
        )


def test_a_full_service_is_not_sent_more_requests() -> None:
    with gated_edge(max_requests_per_backend=2) as (gate, edge), ExitStack() as stack:
        clients = [send_request(stack, edge) for _ in range(2)]
        wait_until(lambda: gate.in_flight == 2, "two requests are in flight")
        assert_rejected(edge, 503, "overloaded")
        gate.released.set()
        assert {client.response()[0] for client in clients} == {200}
        wait_until(lambda: is_ready(edge), "requests are accepted again")


def test_large_bodies_are_limited_and_small_ones_are_served() -> None:
    settings = {"max_large_bodies": 1, "large_body_bytes": 100}
    with gated_edge(**settings) as (gate, edge), ExitStack() as stack:
        send_request(stack, edge, size=101)
        wait_until(lambda: gate.in_flight == 1, "a large body is in flight")
        assert_rejected(edge, 503, "overloaded", content=b"a" * 101)
        send_request(stack, edge, size=100)
        wait_until(lambda: gate.in_flight == 2, "a small one is served")
        gate.released.set()


def test_a_service_that_is_not_ready_gets_503_until_it_is() -> None:
    with gated_edge(**FAST_CHECKS) as (gate, edge):
        gate.released.set()
        gate.ready = False
        wait_until(lambda: "is DOWN" in edge.log.read_text(), "the health check has failed")
        assert_rejected(edge, 503, "overloaded")
        gate.ready = True
        wait_until(lambda: is_ready(edge), "the backend is healthy again")


def test_a_service_too_busy_for_its_probe_stays_up() -> None:
    with gated_edge(**FAST_CHECKS) as (gate, edge):
        gate.released.set()
        gate.not_ready_body = b"Request dropped due to backpressure"
        gate.ready = False
        before = gate.probes
        wait_until(lambda: gate.probes >= before + 5, "more probes than it takes to be down")
        response = httpx.get(f"{edge.url}/v1/models", trust_env=False, timeout=HANG_GUARD_S)
        assert response.status_code == 200


def test_without_a_service_the_response_is_503() -> None:
    with RunningEdge([DISCARD_PORT], LONG_TIMEOUTS) as edge:
        assert_rejected(edge, 503, "overloaded")


@pytest.mark.parametrize(
    ("status", "told", "code"),
    [
        (503, 503, "overloaded"),
        (500, 500, "internal_error"),
        (504, 504, "deadline_exceeded"),
        (408, 504, "deadline_exceeded"),
    ],
)
def test_ray_serves_plain_text_errors_are_replaced(status: int, told: int, code: str) -> None:
    with gated_edge() as (gate, edge):
        gate.released.set()
        gate.reply = (status, b"text/plain", b"Request dropped due to backpressure")
        url = f"{edge.url}/v1/models"
        response = httpx.get(url, trust_env=False, timeout=HANG_GUARD_S)
        assert (response.status_code, response.json()["error"]["code"]) == (told, code)
        gate.reply = (status, b"application/json", b'{"error":{"code":"own"}}')
        response = httpx.get(url, trust_env=False, timeout=HANG_GUARD_S)
        assert (response.status_code, response.json()["error"]["code"]) == (status, "own")


def test_the_service_sees_that_a_client_disconnects() -> None:
    with gated_edge() as (gate, edge), ExitStack() as stack:
        client = send_request(stack, edge)
        wait_until(lambda: gate.in_flight == 1, "it is in flight")
        client.socket.close()
        wait_until(lambda: gate.disconnected == 1, "the service has seen the disconnect")


def test_a_request_that_was_sent_is_never_retried() -> None:
    """When the service dies with a request, only the client may decide to send it again."""
    arrived = []

    async def breaks_off(scope: Any, receive: Any, send: Any) -> None:
        if scope["path"] == "/readyz":
            headers = [(b"content-length", b"18")]
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            await send({"type": "http.response.body", "body": b'{"status":"ready"}'})
            return
        arrived.append(scope["path"])
        # Headers without a body: uvicorn closes the connection.
        await send(
            {"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"9")]}
        )

    backends = [Backend(breaks_off), Backend(breaks_off)]
    try:
        with RunningEdge([backend.port for backend in backends], LONG_TIMEOUTS) as edge:
            wait_until(lambda: is_ready(edge), "the backends are healthy")
            with RawClient(edge.port) as client:
                client.send(b"POST /a HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\n{}")
                client.read_all()
            assert arrived == ["/a"]
    finally:
        for backend in backends:
            backend.stop()
