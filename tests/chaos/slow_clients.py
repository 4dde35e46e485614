"""Item 9 and part of item 4: slow clients and stuck uploads at the front, and what others notice.

The service behind it is an ASGI application that answers after 20 ms, in a process of its own;
the front runs with its shipped deadlines and bounds.  No Ray is started.
"""

from __future__ import annotations

import http.client
import select
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from math import nan
from typing import Any

import numpy as np

from ..front.running import RawClient, RunningEdge, wait_until
from ..ports import free_ports
from .report import Report

MIB = 2**20
KINDS = {"headers": 200, "bodies": 50}
"""Connections that send one byte a second, of their headers or of their body."""
UPLOADS, HUGE = 12, 300 * MIB
LIFE_S, GROWTH_MIB = 15.0, 16.0
PACE_S = 0.01


async def app(scope: Any, receive: Any, send: Any) -> None:
    """Answers after 20 ms; what is sent to /stuck is never read."""
    import asyncio

    body = b'{"status":"ready"}'
    await asyncio.sleep(3600 if scope["path"] == "/stuck" else 0.02)
    headers = [(b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def run(report: Report, quick: bool) -> None:
    """Compare others' times before, during and after an attack; watch HAProxy's memory."""
    seconds = 16.0 if quick else 40.0
    with _service() as port, RunningEdge([port]) as edge:
        wait_until(lambda: _get(edge.port)[1] == 200, "the service is checked")
        _others(edge.port, 3.0)  # warm
        before = _others(edge.port, seconds)
        memory = edge.memory_bytes()
        attack = _Attack(edge)
        attack.start()
        during = _others(edge.port, seconds)
        growth = (attack.most_memory - memory) / MIB
        attack.end()
        after = _others(edge.port, seconds)
        _report_drips(report, attack, before, during, after, growth)
        _stuck_uploads(report, edge)


def _report_drips(
    report: Report, attack: _Attack, before: _Times, during: _Times, after: _Times, growth: float
) -> None:
    item = "9 slow clients"
    judge_drips(report, attack.drips)
    report.at_most(item, "others' responses other than 200", during.failures, 0)
    quiet = (before.p99 + after.p99) / 2
    report.add(
        item, "others' p99 without, before and after", f"{before.p99:.1f}, {after.p99:.1f} ms"
    )
    report.at_most(item, "others' p99 during it, of that without", during.p99 / quiet, 2.0, "times")
    report.at_most(item, "growth of the front's memory", growth, GROWTH_MIB, "MiB")


def judge_drips(report: Report, drips: Mapping[str, Drips]) -> None:
    """Each kind is reaped, in time and for being slow; who still lives is not too old either."""
    item = "9 slow clients"
    for kind, count in KINDS.items():
        found = drips[kind]
        told = f"{count} dripping {kind}"
        report.at_least(item, f"{told}: reaped so far, with 408", len(found.reaped), count)
        ages = found.reaped + found.living
        report.at_most(
            item, f"{told}: oldest connection, open or closed", max(ages, default=nan), LIFE_S, "s"
        )
        report.at_most(item, f"{told}: ended otherwise", found.otherwise, 0)


def _stuck_uploads(report: Report, edge: RunningEdge) -> None:
    """Bodies just below the service's limit, which it does not read: who holds them?"""
    memory = edge.memory_bytes()
    size = 60 * MIB
    head = b"POST /stuck HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % size
    with ExitStack() as stack:
        clients = [stack.enter_context(RawClient(edge.port)) for _ in range(UPLOADS)]
        for client in clients:
            client.send(head)
            client.socket.setblocking(False)
        sent, block = 0, b"a" * 65_536
        deadline = time.monotonic() + 5.0
        while time.monotonic() < deadline:
            _, writable, _ = select.select([], [c.socket for c in clients], [], 0.2)
            sent += sum(found.send(block) for found in writable)
        huge = {announced: _huge(edge.port, announced) for announced in (True, False)}
        growth = (edge.memory_bytes() - memory) / MIB
        others = _others(edge.port, 3.0)
    item = "4 stuck uploads"
    report.add(item, "300 MiB beside them, length announced", huge[True], "413", huge[True] == 413)
    report.add(item, "300 MiB beside them, in chunks", huge[False], "411", huge[False] == 411)
    told = f"of {UPLOADS} unread uploads of 60 MiB, accepted (kernel buffers included)"
    report.add(item, told, f"{sent / MIB:.1f} MiB")
    report.at_most(item, "growth of the front's memory", growth, GROWTH_MIB, "MiB")
    report.at_most(item, "others' responses other than 200", others.failures, 0)


class _Times:
    """Of other clients' requests."""

    def __init__(self, ms: list[float], statuses: list[int]) -> None:
        self.p99 = float(np.percentile(ms, 99))
        self.failures = sum(status != 200 for status in statuses)


def _get(port: int, connection: http.client.HTTPConnection | None = None) -> tuple[float, int]:
    """Milliseconds and status of one request; a connection of its own unless one is given."""
    asked = connection or http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    started = time.perf_counter()
    try:
        asked.request("GET", "/healthz", headers={"Connection": "close"})
        answer = asked.getresponse()
        answer.read()
        return (time.perf_counter() - started) * 1000, answer.status
    except OSError:
        return (time.perf_counter() - started) * 1000, 0
    finally:
        asked.close()


def _others(port: int, seconds: float) -> _Times:
    """A new connection each time: what slow clients would take from others."""
    times, statuses = [], []
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        ms, status = _get(port)
        times.append(ms)
        statuses.append(status)
        time.sleep(PACE_S)
    return _Times(times, statuses)


def _huge(port: int, announced: bool) -> int:
    """Status of an upload of 300 MiB; sent as long as somebody takes it."""
    head = b"POST /stuck HTTP/1.1\r\nHost: a\r\n"
    length = b"Content-Length: %d\r\n\r\n" % HUGE
    block = b"a" * MIB
    piece = block if announced else b"100000\r\n" + block + b"\r\n"
    with RawClient(port) as client:
        client.send(head + (length if announced else b"Transfer-Encoding: chunked\r\n\r\n"))
        for _ in range(HUGE // MIB):
            if select.select([client.socket], [], [], 0)[0] or not client.send(piece):
                break
        status, _, _ = client.response()
        return status


@dataclass
class Drips:
    """What became of slow clients of one kind.

    Attributes:
        reaped: seconds that each lived until it was told that it is too slow (408).
        living: ages of those whom nobody had ended when the attack was over.
        otherwise: connections that ended in another way, as by a refusal to take them at all.
    """

    reaped: list[float] = field(default_factory=list)
    living: list[float] = field(default_factory=list)
    otherwise: int = 0

    def ended(self, answer: bytes, age_s: float) -> None:
        if answer.startswith(b"HTTP/1.1 408"):
            self.reaped.append(age_s)
        else:
            self.otherwise += 1


class _Attack:
    """Keeps the drips going: who is reaped comes back at once."""

    HEAD = b"POST /v1/segment HTTP/1.1\r\nHost: a\r\nContent-Length: 100000\r\n"

    def __init__(self, edge: RunningEdge) -> None:
        self._edge = edge
        self.drips = {kind: Drips() for kind in KINDS}
        self.most_memory = 0
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._drip)

    def start(self) -> None:
        self._thread.start()

    def end(self) -> None:
        self._done.set()
        self._thread.join()

    def _open(self, kind: str) -> tuple[RawClient, str, float]:
        # Two addresses: one of them may not have so many connections.
        client = RawClient(self._edge.port, "127.0.0.2" if kind == "headers" else "127.0.0.3")
        client.send(self.HEAD + (b"X-Drip: " if kind == "headers" else b"\r\n"))
        return client, kind, time.monotonic()

    def _drip(self) -> None:
        dripping = [self._open(kind) for kind, count in KINDS.items() for _ in range(count)]
        while not self._done.wait(1.0):
            closed = set(select.select([c.socket for c, _, _ in dripping], [], [], 0)[0])
            for place, (client, kind, born) in enumerate(dripping):
                if client.socket in closed:
                    self.drips[kind].ended(client.read_all(), time.monotonic() - born)
                    client.socket.close()
                    dripping[place] = self._open(kind)
                else:
                    client.send(b"a")
            self.most_memory = max(self.most_memory, self._edge.memory_bytes())
        for client, kind, born in dripping:
            self.drips[kind].living.append(time.monotonic() - born)
            client.socket.close()


@contextmanager
def _service() -> Iterator[int]:
    (port,) = free_ports(1)
    command = [sys.executable, "-m", "uvicorn", f"{__name__}:app", "--port", str(port)]
    process = subprocess.Popen([*command, "--log-level", "error"])
    try:
        wait_until(lambda: _get(port)[1] == 200, "the service listens")
        yield port
    finally:
        process.kill()  # it would wait for what is stuck
        process.wait(30)
