"""Clients that drip: reaped by their deadline, and nobody else notices."""

from __future__ import annotations

import select
import threading
import time
from collections.abc import Callable

import httpx
import pytest

from .conftest import DEADLINE_S
from .running import Raw, RunningFront

pytestmark = pytest.mark.slow

DRIPS = 40
PATIENCE_S = 60 * DEADLINE_S
"""In this time all have long been reaped, however slow the machine."""
HEAD = b"POST /v1/segment HTTP/1.1\r\nHost: a\r\nContent-Length: 1000\r\n"


def _reaped(clients: list[Raw], drip: Callable[[], bytes]) -> list[float]:
    """Drip into all until each is closed; the seconds each one lived."""
    started = time.monotonic()
    lived: list[float] = []
    waiting = {client.socket: client for client in clients}
    while waiting and time.monotonic() - started < PATIENCE_S:
        readable, _, _ = select.select(list(waiting), [], [], 0.1)
        for found in readable:
            if not waiting[found].read_all().startswith(b"HTTP/1.1 408"):
                raise AssertionError("not refused as too slow")
            del waiting[found]
            lived.append(time.monotonic() - started)
        for client in waiting.values():
            client.send(drip())
    return lived


def _others(front: RunningFront, done: threading.Event) -> list[int]:
    statuses = []
    with httpx.Client(base_url=front.url, trust_env=False, timeout=120) as client:
        while not done.is_set():
            statuses.append(client.get("/healthz").status_code)
    return statuses


def _under_drips(front: RunningFront, head: bytes, drip: Callable[[], bytes]) -> None:
    memory = front.memory_bytes()
    done, statuses = threading.Event(), []
    other = threading.Thread(target=lambda: statuses.extend(_others(front, done)))
    clients = [Raw(front.port) for _ in range(DRIPS)]
    other.start()
    try:
        for client in clients:
            client.send(head)
        lived = _reaped(clients, drip)
        growth = front.memory_bytes() - memory
    finally:
        done.set()
        other.join()
        for client in clients:
            client.socket.close()
    assert len(lived) == DRIPS
    assert statuses
    assert set(statuses) == {200}
    assert growth <= 16 * 2**20


def test_headers_that_drip_are_reaped_and_others_served(hasty_front: RunningFront) -> None:
    _under_drips(hasty_front, HEAD, lambda: b"X")


def test_bodies_that_drip_are_reaped_and_others_served(hasty_front: RunningFront) -> None:
    _under_drips(hasty_front, HEAD + b"\r\n", lambda: b"a")


def test_a_connection_that_says_nothing_is_reaped(hasty_front: RunningFront) -> None:
    with Raw(hasty_front.port) as client:
        client.read_all()
