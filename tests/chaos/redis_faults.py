"""Item 7 under HTTP load: a real Redis absent at the start, killed, frozen, and back.

Two applications on one Ray get the same questions by turns; one of them has no Redis.  What Redis
adds is the difference between the two, in the same seconds on the same machine.
"""

from __future__ import annotations

import asyncio
import tempfile
import time
from pathlib import Path

from serve_tools.bench.load import Outcome

from ..cluster.ray_cluster import wait_until
from ..fakes.graph import application, graph
from ..faults.redis_server import RedisServer
from .client import Client, Ledger, median, quantile
from .questions import Mix
from .report import Report
from .service import READY_S, Service, serving, wait_until_ready

ITEM = "7 redis"
TIMES = {"encode_ms": 40.0, "decode_ms": 10.0}
RATE = 8.0
"""Requests a second to each application."""


def run(report: Report, quick: bool) -> None:
    """All phases, one after the other, under one load."""
    seconds = 8.0 if quick else 20.0
    with tempfile.TemporaryDirectory() as folder:
        redis = RedisServer(Path(folder))
        args = graph(fakes=TIMES, cache={"redis_url": redis.url})
        try:
            with serving(args) as service:
                _add_plain(service)
                asyncio.run(_phases(report, service, redis, seconds))
        finally:
            redis.kill()


def _add_plain(service: Service) -> None:
    """A second application beside the first, without Redis."""
    plain = application("plain", graph(fakes=TIMES))
    config = {**service.config, "applications": [*service.config["applications"], plain]}
    service.redeploy(config)
    wait_until_ready(f"{service.url}/plain")
    running = {"RUNNING"}
    wait_until(
        lambda: {a["status"] for a in service.cluster.applications().values()} == running,
        "both applications run",
        READY_S,
    )


async def _phases(report: Report, service: Service, redis: RedisServer, seconds: float) -> None:
    async with Client(service.url) as client, Client(f"{service.url}/plain") as plain:
        for one in (client, plain):
            await one.open_loop(Mix(), RATE, 3.0)
            one.ledger = Ledger()

        async def phase(name: str) -> None:
            mix, same = Mix(), Mix()
            ours, theirs = await asyncio.gather(
                client.open_loop(mix, RATE, seconds), plain.open_loop(same, RATE, seconds)
            )
            _judge(report, name, ours, theirs)

        await phase("absent from the start")
        redis.start()
        await phase("started")
        redis.kill()
        await phase("killed")
        redis.start()
        began = time.monotonic()
        back = asyncio.create_task(asyncio.to_thread(_used, redis, began))
        await phase("restarted, empty")
        report.at_most(ITEM, "used again after it came back", await back, 10, "s")
        redis.stop()
        await phase("frozen (SIGSTOP)")
        redis.cont()
        await phase("thawed")
        ledger = client.ledger
    report.at_most(ITEM, "ids without exactly one outcome", ledger.unanswered, 0)
    report.at_most(ITEM, "requests with two different results", ledger.contradictions(), 0)
    report.note(f"\nRedis, ledger:\n\n{ledger.table()}\n")


def _judge(report: Report, name: str, ours: list[Outcome], theirs: list[Outcome]) -> None:
    report.at_most(ITEM, f"{name}: responses other than 200", sum(o.status != 200 for o in ours), 0)
    with_ms, without_ms = ([o.took_ms for o in found] for found in (ours, theirs))
    added = median(with_ms) - median(without_ms)
    report.at_most(ITEM, f"{name}: added at p50", added, 50, "ms")
    added = quantile(with_ms, 0.99) - quantile(without_ms, 0.99)
    report.at_most(ITEM, f"{name}: added at p99", added, 50, "ms")


def _used(redis: RedisServer, began: float) -> float:
    """Seconds until something is kept in it again."""
    import redis as client

    with client.Redis(port=redis.port) as connection:
        try:
            wait_until(lambda: bool(connection.dbsize()), "Redis is used", 20.0)
        except TimeoutError:
            return float("inf")
    return time.monotonic() - began
