"""Too many at once, and a service that is not there: clear refusals with Retry-After."""

from __future__ import annotations

import asyncio
import re
import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from .running import Backend, Raw, RunningFront, wait_until


class Gate:
    """An ASGI application: answers when it is opened, and at once to probes.

    Attributes:
        waiting: requests inside.
        left: requests whose client went away meanwhile.
        probes: asked for so far.
        probe: what they are answered while it is not ready.
    """

    def __init__(self) -> None:
        self.opened = threading.Event()
        self.ready = True
        self.waiting = 0
        self.left = 0
        self.probes = 0
        self.probe = b'{"status":"loading"}'
        self.answer: tuple[int, bytes, bytes] = (200, b"application/json", b"{}")

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        status, kind, body = self.answer
        if scope["path"] == "/readyz":
            status = 200 if self.ready else 503
            body = b'{"status":"ready"}' if self.ready else self.probe
            self.probes += 1
        else:
            self.waiting += 1
            while (await receive()).get("more_body"):
                pass
            leaving = asyncio.ensure_future(receive())
            while not self.opened.is_set() and not leaving.done():
                await asyncio.wait([leaving], timeout=0.01)
            self.waiting -= 1
            self.left += leaving.done()
            leaving.cancel()
        headers = [(b"content-type", kind), (b"content-length", str(len(body)).encode())]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})


@contextmanager
def gated(command: bool = False, **settings: Any) -> Iterator[tuple[Gate, RunningFront]]:
    gate = Gate()
    backend = Backend(gate)
    try:
        with RunningFront([backend.port], settings, command=command) as front:
            wait_until(lambda: ready(front), "the backend is checked")
            yield gate, front
    finally:
        gate.opened.set()
        backend.stop()


def ready(front: RunningFront) -> bool:
    return httpx.get(f"{front.url}/readyz", trust_env=False, timeout=120).status_code == 200


def refused(front: RunningFront, status: int, code: str, **more: Any) -> None:
    answer = httpx.request("POST", f"{front.url}/v1/segment", trust_env=False, timeout=120, **more)
    error = answer.json()["error"]
    assert (answer.status_code, error["code"]) == (status, code)
    assert error["request_id"] == answer.headers["x-request-id"] != ""
    assert int(answer.headers["retry-after"]) >= 1


def ask(stack: ExitStack, front: RunningFront, source: str = "127.0.0.1", size: int = 0) -> Raw:
    client = stack.enter_context(Raw(front.port, source))
    client.send(b"POST /a HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % size + b"a" * size)
    return client


def test_one_address_has_so_many_connections_and_others_have_theirs() -> None:
    with gated(max_connections_per_source=4) as (gate, front), ExitStack() as stack:
        clients = [ask(stack, front) for _ in range(4)]
        wait_until(lambda: gate.waiting == 4, "four requests are inside")
        refused(front, 429, "too_many_requests")
        other = ask(stack, front, source="127.0.0.2")
        wait_until(lambda: gate.waiting == 5, "another address is served")
        gate.opened.set()
        assert {client.answer()[0] for client in (*clients, other)} == {200}


def statuses(stack: ExitStack, port: int, source: str, count: int) -> list[int]:
    """Of a request on each of so many connections, all made before; 0: it was not taken."""
    clients: list[Raw | None] = []
    for _ in range(count):
        try:
            clients.append(stack.enter_context(Raw(port, source)))
        except ConnectionResetError:
            clients.append(None)
    for client in clients:
        if client is not None:
            client.send(b"GET /readyz HTTP/1.1\r\nHost: a\r\n\r\n")
    return [0 if client is None else client.answer()[0] for client in clients]


def test_beyond_twice_as_many_connections_are_not_taken() -> None:
    settings = {"max_connections_per_source": 2, "header_timeout_s": 30}
    with gated(**settings) as (_, front), ExitStack() as stack:
        # From another address: that of the readiness checks may still have some.
        assert statuses(stack, front.port, "127.0.0.2", 8) == [429] * 4 + [0] * 4
        assert ready(front)


def test_behind_a_trusted_proxy_the_clients_are_told_apart() -> None:
    settings = {"max_connections_per_source": 1, "trusted_proxies": ["127.0.0.0/8"]}
    with gated(**settings) as (gate, front), ExitStack() as stack:
        one = stack.enter_context(Raw(front.port))
        one.send(b"GET /a HTTP/1.1\r\nHost: a\r\nX-Forwarded-For: 9.9.9.9, 1.2.3.4\r\n\r\n")
        wait_until(lambda: gate.waiting == 1, "it is inside")
        refused(front, 429, "too_many_requests", headers={"x-forwarded-for": "1.2.3.4"})
        two = stack.enter_context(Raw(front.port))
        two.send(b"GET /a HTTP/1.1\r\nHost: a\r\nX-Forwarded-For: 1.2.3.4, 5.6.7.8\r\n\r\n")
        wait_until(lambda: gate.waiting == 2, "another client of the same proxy is served")


def test_of_ipv6_a_network_is_one_client() -> None:
    """A host has a /64 to choose its addresses from."""
    settings = {"max_connections_per_source": 1, "trusted_proxies": ["127.0.0.0/8"]}
    with gated(**settings) as (gate, front), ExitStack() as stack:

        def inside(address: str) -> None:
            client = stack.enter_context(Raw(front.port))
            there = gate.waiting + 1
            head = f"GET /a HTTP/1.1\r\nHost: a\r\nX-Forwarded-For: {address}\r\n\r\n"
            client.send(head.encode())
            wait_until(lambda: gate.waiting == there, f"{address} is inside")

        inside("2001:db8::1")
        beside = {"x-forwarded-for": "2001:db8::ffff:ffff:ffff:ffff"}
        refused(front, 429, "too_many_requests", headers=beside)
        # Another network; and IPv4 written as IPv6, which is no network of its own.
        for other in ("2001:db8:0:1::1", "::ffff:1.2.3.4", "::ffff:1.2.3.5"):
            inside(other)


@pytest.mark.skipif(not Path("/proc/net/if_inet6").exists(), reason="a machine without IPv6")
def test_connections_are_counted_by_address_in_ipv4_and_by_network_in_ipv6(tmp_path: Path) -> None:
    asked = tmp_path / "asked"
    more = f"global\n    stats socket {asked}\n"
    with RunningFront([9], host="[::]", more=more) as front, ExitStack() as stack:
        for source in ("127.0.0.1", "127.0.0.2", "::1"):
            there = "::1" if source == "::1" else "127.0.0.1"
            stack.enter_context(
                socket.create_connection((there, front.port), source_address=(source, 0))
            )

        def counted() -> set[str]:
            with socket.socket(socket.AF_UNIX) as client:
                client.connect(str(asked))
                client.sendall(b"show table connections\n")
                with client.makefile() as told:
                    return set(re.findall("key=(\\S+)", told.read()))

        keys = {"::ffff:127.0.0.1", "::ffff:127.0.0.2", "::"}
        wait_until(lambda: counted() == keys, f"the table holds {keys}")


def test_a_full_service_is_refused_at_once() -> None:
    with gated(max_requests_per_backend=2) as (gate, front), ExitStack() as stack:
        clients = [ask(stack, front) for _ in range(2)]
        wait_until(lambda: gate.waiting == 2, "two requests are inside")
        refused(front, 503, "overloaded")
        gate.opened.set()
        assert {client.answer()[0] for client in clients} == {200}
        wait_until(lambda: ready(front), "there is room again")


def test_large_bodies_are_bounded_and_small_ones_go_on() -> None:
    with gated(max_large_bodies=1, large_body_bytes=100) as (gate, front), ExitStack() as stack:
        ask(stack, front, size=101)
        wait_until(lambda: gate.waiting == 1, "a large body is inside")
        refused(front, 503, "overloaded", content=b"a" * 101)
        ask(stack, front, size=100)
        wait_until(lambda: gate.waiting == 2, "a small one is served")
        gate.opened.set()


def test_a_service_that_is_not_ready_is_told_as_503() -> None:
    with gated() as (gate, front):
        gate.opened.set()
        gate.ready = False
        wait_until(lambda: "is DOWN" in front.log.read_text(), "the front has noticed")
        refused(front, 503, "overloaded")
        gate.ready = True
        wait_until(lambda: ready(front), "and that it is back")


def test_a_service_too_full_for_its_probe_is_kept() -> None:
    with gated() as (gate, front):
        gate.opened.set()
        gate.ready = False
        gate.probe = b"Request dropped due to backpressure"
        asked = gate.probes
        wait_until(lambda: gate.probes >= asked + 5, "the probe has failed often enough")
        assert httpx.get(f"{front.url}/v1/models", trust_env=False, timeout=120).status_code == 200


def test_without_any_service_the_answer_is_503() -> None:
    with RunningFront([9]) as front:
        refused(front, 503, "overloaded")


@pytest.mark.parametrize(
    ("status", "code"),
    [(503, "overloaded"), (500, "internal_error"), (504, "deadline_exceeded")],
)
def test_ray_serves_plain_text_becomes_the_envelope(status: int, code: str) -> None:
    with gated() as (gate, front):
        gate.opened.set()
        gate.answer = (status, b"text/plain", b"Request dropped due to backpressure")
        answer = httpx.get(f"{front.url}/v1/models", trust_env=False, timeout=120)
        assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)
        gate.answer = (status, b"application/json", b'{"error":{"code":"own"}}')
        answer = httpx.get(f"{front.url}/v1/models", trust_env=False, timeout=120)
        assert (answer.status_code, answer.json()["error"]["code"]) == (status, "own")


def test_a_client_that_leaves_is_told_to_the_service() -> None:
    with gated() as (gate, front), ExitStack() as stack:
        client = ask(stack, front)
        wait_until(lambda: gate.waiting == 1, "it is inside")
        client.socket.close()
        wait_until(lambda: gate.left == 1, "the service knows")


def test_what_was_sent_is_never_sent_again() -> None:
    """A service that dies with the request: the client decides whether to ask again."""
    arrived = []

    async def dies(scope: Any, receive: Any, send: Any) -> None:
        if scope["path"] == "/readyz":
            headers = [(b"content-length", b"18")]
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            await send({"type": "http.response.body", "body": b'{"status":"ready"}'})
            return
        arrived.append(scope["path"])
        # Headers without their body, then an end: uvicorn drops the connection.
        await send(
            {"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"9")]}
        )

    backends = [Backend(dies), Backend(dies)]
    try:
        with RunningFront([backend.port for backend in backends]) as front:
            wait_until(lambda: ready(front), "the backends are checked")
            with Raw(front.port) as client:
                client.send(b"POST /a HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\n{}")
                client.read_all()
            assert arrived == ["/a"]
    finally:
        for backend in backends:
            backend.stop()
