"""Clients that send byte by byte: the edge times them out, and other clients do not notice."""

from __future__ import annotations

import select
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack

import httpx
import pytest

from .running import HANG_GUARD_S, RawClient, RunningEdge, wait_until

pytestmark = pytest.mark.slow

SLOW_CLIENTS = 40
HEAD = b"POST /v1/segment HTTP/1.1\r\nHost: a\r\nContent-Length: 1000\r\n"


class OtherClient:
    """A thread that sends one request after the other, on one connection.

    Attributes:
        statuses: of its responses.
    """

    def __init__(self, edge: RunningEdge) -> None:
        self.statuses: list[int] = []
        self._url = f"{edge.url}/healthz"
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> OtherClient:
        self._thread.start()
        wait_until(lambda: bool(self.statuses), "the first response is here")
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def _run(self) -> None:
        with httpx.Client(trust_env=False, timeout=HANG_GUARD_S) as client:
            while not self._done.is_set():
                self.statuses.append(client.get(self._url).status_code)


def _drip_until_closed(clients: list[RawClient], next_byte: Callable[[], bytes]) -> list[bytes]:
    """Send to every connection until the edge has closed all; returns what it sent to each."""
    deadline = time.monotonic() + HANG_GUARD_S
    received: list[bytes] = []
    still_open = {client.socket: client for client in clients}
    while still_open and time.monotonic() < deadline:
        readable, _, _ = select.select(list(still_open), [], [], 0.1)
        received += [still_open.pop(found).read_all() for found in readable]
        for client in still_open.values():
            client.send(next_byte())
    return received


def _assert_timed_out(edge: RunningEdge, head: bytes, next_byte: Callable[[], bytes]) -> None:
    memory = edge.memory_bytes()
    with OtherClient(edge) as other, ExitStack() as stack:
        clients = [stack.enter_context(RawClient(edge.port)) for _ in range(SLOW_CLIENTS)]
        for client in clients:
            client.send(head)
        received = _drip_until_closed(clients, next_byte)
        growth = edge.memory_bytes() - memory
    assert [response[:12] for response in received] == [b"HTTP/1.1 408"] * SLOW_CLIENTS
    assert set(other.statuses) == {200}
    assert growth <= 16 * 2**20


def test_slow_headers_time_out_and_other_clients_are_served(impatient_edge: RunningEdge) -> None:
    _assert_timed_out(impatient_edge, HEAD, lambda: b"X")


def test_slow_bodies_time_out_and_other_clients_are_served(impatient_edge: RunningEdge) -> None:
    _assert_timed_out(impatient_edge, HEAD + b"\r\n", lambda: b"a")


def test_a_silent_connection_is_closed(impatient_edge: RunningEdge) -> None:
    with RawClient(impatient_edge.port) as client:
        assert client.read_all().startswith(b"HTTP/1.1 408")
