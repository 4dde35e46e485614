"""A real Redis that is absent, dies, freezes, is slow, is full: it costs time, never an answer."""

from __future__ import annotations

import asyncio
import logging
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import redis

import serve_app.cache.redis
from serve_app.cache.redis import RedisTier
from serve_app.core.inference import Embedding
from serve_app.core.settings import CacheSettings
from serve_app.core.types import CacheTier
from serve_app.embeddings.tiers import TieredEmbeddingCache
from serve_app.telemetry.metrics import REDIS_BREAKER_OPEN, REDIS_OPERATIONS

from .redis_server import RedisServer

pytestmark = pytest.mark.slow

KEYS = 16
PATIENCE_S = 120.0
PATIENT = {"redis_timeout_s": 1.0}
"""For lookups of a Redis that answers: on a busy machine the default is soon over."""


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RedisServer]:
    """One that does not run yet."""
    server = RedisServer(tmp_path)
    yield server
    server.kill()


@pytest.fixture(autouse=True)
def _patient_background(monkeypatch: pytest.MonkeyPatch) -> None:
    """Connecting, writing and pinging may take long, on a busy machine too."""
    monkeypatch.setattr(serve_app.cache.redis, "_BACKGROUND_S", 60.0)


def _settings(url: str, **more: Any) -> CacheSettings:
    return CacheSettings(redis_url=url, **{"redis_probe_interval_s": 0.05} | more)


@asynccontextmanager
async def tier_at(url: str, **more: Any) -> AsyncIterator[RedisTier]:
    tier = RedisTier.connect(_settings(url, **more))
    try:
        yield tier
    finally:
        await tier.close()


def embedding(number: int, floats: int = 2_500) -> Embedding:
    return Embedding({"e": np.full(floats, number, np.float32)}, height=3, width=4)


class Load:
    """Callers that look embeddings up without pause, as a replica without memory would.

    Attributes:
        tiers: where the answers came from, since it was last cleared.
    """

    def __init__(self, tier: RedisTier, callers: int = 4) -> None:
        self._cache = TieredEmbeddingCache(0, tier)
        self._turn = 0
        self.callers = callers
        self.tiers: Counter[CacheTier] = Counter()
        self._ended = [0] * callers
        self._tasks = [asyncio.create_task(self._call(caller)) for caller in range(callers)]

    async def _call(self, caller: int) -> None:
        while True:
            self._turn += 1
            number = self._turn % KEYS

            async def compute(number: int = number) -> Embedding:
                return embedding(number)

            found = await self._cache.get_or_compute(f"key-{number}", compute)
            assert found is not None
            np.testing.assert_array_equal(found[0].tensors["e"], embedding(number).tensors["e"])
            self.tiers[found[1]] += 1
            self._ended[caller] += 1

    async def until(self, true: Callable[[], bool]) -> None:
        """Go on until it is so.  A wrong answer or an exception of any caller ends the test."""
        async with asyncio.timeout(PATIENCE_S):
            while not true():
                done, _ = await asyncio.wait(self._tasks, timeout=0.005)
                for task in done:
                    task.result()

    async def phase(self, tier: CacheTier, answers: int = 60) -> None:
        """Until so many more answers have come from there."""
        self.tiers.clear()
        await self.until(lambda: self.tiers[tier] >= answers)

    async def lookups_in_flight_end(self) -> None:
        """Until no lookup is left that had begun before."""
        before = [*self._ended]
        await self.until(
            lambda: all(now > then for now, then in zip(self._ended, before, strict=True))
        )

    async def end(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


async def test_it_may_be_absent_at_the_start(server: RedisServer, counted: Any) -> None:
    async with tier_at(server.url, **PATIENT) as tier:
        load = Load(tier)
        await load.phase(CacheTier.MISS)
        assert load.tiers[CacheTier.REDIS] == 0
        assert tier.circuit_open
        await asyncio.to_thread(server.start)
        await load.phase(CacheTier.REDIS)
        assert not tier.circuit_open
        await load.end()
    assert counted.of(REDIS_OPERATIONS, outcome="error") >= 3


async def test_it_may_die_and_return_under_load(server: RedisServer, counted: Any) -> None:
    await asyncio.to_thread(server.start)
    async with tier_at(server.url, **PATIENT) as tier:
        load = Load(tier)
        for _ in range(3):
            await load.phase(CacheTier.REDIS)
            assert counted.of(REDIS_BREAKER_OPEN) == 0
            server.kill()
            await load.until(lambda: tier.circuit_open)
            assert counted.of(REDIS_BREAKER_OPEN) == 1
            await load.lookups_in_flight_end()
            await load.phase(CacheTier.MISS)
            assert load.tiers[CacheTier.REDIS] == 0
            await asyncio.to_thread(server.start)
            await load.until(lambda: not tier.circuit_open)
        await load.phase(CacheTier.REDIS)
        await load.end()


async def test_it_may_freeze_and_thaw_under_load(server: RedisServer, counted: Any) -> None:
    await asyncio.to_thread(server.start)
    async with tier_at(server.url) as tier:
        load = Load(tier)
        for _ in range(3):
            await load.phase(CacheTier.REDIS)
            server.stop()
            await load.until(lambda: tier.circuit_open)
            await load.lookups_in_flight_end()
            await load.phase(CacheTier.MISS)
            assert load.tiers[CacheTier.REDIS] == 0
            # Left alone, it costs nothing: nobody waits for a time limit, but who waited already.
            late = counted.of(REDIS_OPERATIONS, operation="get", outcome="timeout")
            await load.phase(CacheTier.MISS)
            waited = counted.of(REDIS_OPERATIONS, operation="get", outcome="timeout") - late
            assert waited < load.callers
            server.cont()
            await load.until(lambda: not tier.circuit_open)
        await load.phase(CacheTier.REDIS)
        await load.end()
    assert counted.of(REDIS_OPERATIONS, operation="get", outcome="timeout") >= 3


async def test_three_lookups_wait_for_a_frozen_one_and_the_next_do_not(
    server: RedisServer, counted: Any, our_log: Any
) -> None:
    await asyncio.to_thread(server.start)
    server.stop()
    # Only a probe that fails at once could fall into this test.
    async with tier_at(server.url, redis_probe_interval_s=8.0) as tier:
        for failures in (1, 2, 3):
            assert not tier.circuit_open
            assert await tier.get("k") is None
            # The lookup itself, which has its connection's time, goes on.
            assert tier._late
            assert counted.of(REDIS_OPERATIONS, operation="get", outcome="timeout") == failures
        assert tier.circuit_open
        for _ in range(50):
            assert await tier.get("k") is None
        assert counted.of(REDIS_OPERATIONS, operation="get", outcome="timeout") == 3
        assert counted.of(REDIS_OPERATIONS, operation="get", outcome="skipped") == 50
        assert [r.levelno for r in our_log()] == [logging.WARNING]


async def test_writing_to_a_frozen_one_holds_nobody_up(
    server: RedisServer, counted: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    await asyncio.to_thread(server.start)
    async with tier_at(server.url, redis_queue_bytes=100_000) as tier:
        tier.put("k", lambda: b"value", 5)
        await tier.written()
        server.stop()
        monkeypatch.setattr(serve_app.cache.redis, "_BACKGROUND_S", 0.3)
        for _ in range(40):
            # More than the kernel takes for it; `put` is no coroutine and cannot wait.
            tier.put("k", lambda: bytes(8_000_000), 10_000)
        assert counted.of(REDIS_OPERATIONS, operation="put", outcome="dropped") == 30
        await tier.written()
        assert tier.circuit_open
        assert counted.of(REDIS_OPERATIONS, operation="put", outcome="timeout") == 3
        assert counted.of(REDIS_OPERATIONS, operation="put", outcome="skipped") == 7
        server.cont()


@dataclass
class Far:
    """A Redis that is far away, and how often it was pinged."""

    url: str = ""
    pings: int = 0


@asynccontextmanager
async def delayed(port: int, parts: int) -> AsyncIterator[Far]:
    """A way to a Redis that takes so many short sleeps in each direction.

    A lookup's time limit is waited for in parts, too: when this process is held up, one part of
    each is over, and who is late stays so.
    """
    far = Far()

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(2**16):
            far.pings += data.count(b"PING")
            for _ in range(parts):
                await asyncio.sleep(0.01)
            writer.write(data)
            await writer.drain()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        far_reader, far_writer = await asyncio.open_connection("127.0.0.1", port)
        ways = [pump(reader, far_writer), pump(far_reader, writer)]
        await asyncio.gather(*ways, return_exceptions=True)

    proxy = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        far.url = f"redis://127.0.0.1:{proxy.sockets[0].getsockname()[1]}/0"
        yield far
    finally:
        proxy.close()


async def test_a_slow_one_is_used_as_long_as_it_is_in_time(server: RedisServer) -> None:
    await asyncio.to_thread(server.start)
    async with delayed(server.port, 1) as far, tier_at(far.url, **PATIENT) as tier:
        load = Load(tier)
        await load.phase(CacheTier.REDIS)
        assert not tier.circuit_open
        await load.end()


async def test_one_that_is_always_late_opens_the_circuit_although_it_answers(
    server: RedisServer, counted: Any
) -> None:
    await asyncio.to_thread(server.start)
    async with delayed(server.port, 10) as far, tier_at(far.url) as tier:
        load = Load(tier)
        await load.until(lambda: tier.circuit_open)
        await load.phase(CacheTier.MISS)
        late = counted.of(REDIS_OPERATIONS, operation="get", outcome="timeout")
        # Pings are answered, each too late to be of use to a lookup.
        await load.until(lambda: far.pings >= 6)
        assert tier.circuit_open
        assert counted.of(REDIS_OPERATIONS, operation="get", outcome="timeout") == late
        assert load.tiers[CacheTier.REDIS] == 0
        await load.end()


async def test_a_burst_opens_no_more_connections_than_allowed(server: RedisServer) -> None:
    await asyncio.to_thread(server.start)
    async with tier_at(server.url, redis_connections=3, **PATIENT) as tier:
        tier.put("k", lambda: b"value", 5)
        await tier.written()
        found = await asyncio.gather(*(tier.get("k") for _ in range(200)))
        assert set(found) == {b"value"}
        with redis.Redis.from_url(server.url) as other:
            assert other.info("clients")["connected_clients"] <= 3 + 2 + 1


FIRST_LIFE = """
import asyncio, sys
from serve_app.cache.redis import RedisTier
from serve_app.embeddings.tiers import TieredEmbeddingCache
from serve_app.core.settings import CacheSettings
from serve_app.core.inference import Embedding
import numpy as np

async def main():
    tier = RedisTier.connect(CacheSettings(redis_url=sys.argv[1]))
    async def compute():
        return Embedding({"e": np.full(2_500, 7, np.float32)}, height=3, width=4)
    await TieredEmbeddingCache(10**6, tier).get_or_compute("warm", compute)
    await tier.written()
    await tier.close()

asyncio.run(main())
"""


async def test_what_was_warm_is_found_after_a_restart_of_ours(server: RedisServer) -> None:
    await asyncio.to_thread(server.start)
    command = [sys.executable, "-c", FIRST_LIFE, server.url]
    await asyncio.to_thread(subprocess.run, command, check=True, timeout=300)
    async with tier_at(server.url, **PATIENT) as tier:
        found = await TieredEmbeddingCache(10**6, tier).get_or_compute("warm", None)
    assert found is not None
    assert found[1] is CacheTier.REDIS
    np.testing.assert_array_equal(found[0].tensors["e"], embedding(7).tensors["e"])


async def test_what_redis_has_evicted_is_a_miss(tmp_path: Path, counted: Any) -> None:
    options = ("--maxmemory", "6mb", "--maxmemory-policy", "allkeys-lru")
    with RedisServer(tmp_path, *options) as server:
        async with tier_at(server.url, **PATIENT) as tier:
            for number in range(20):
                cache = TieredEmbeddingCache(0, tier)
                found = await cache.get_or_compute(str(number), _computing(number, 250_000))
                assert found is not None
                await tier.written()
            cache = TieredEmbeddingCache(0, tier)
            assert await cache.get_or_compute("0", None) is None
            newest = await cache.get_or_compute("19", None)
            assert newest is not None
            assert newest[1] is CacheTier.REDIS
    assert counted.of(REDIS_OPERATIONS, operation="put", outcome="ok") == 20


async def test_one_that_is_full_is_read_and_its_circuit_stays_closed(
    tmp_path: Path, counted: Any
) -> None:
    options = ("--maxmemory", "6mb", "--maxmemory-policy", "noeviction")
    with RedisServer(tmp_path, *options) as server:
        async with tier_at(server.url, **PATIENT) as tier:
            for number in range(20):
                cache = TieredEmbeddingCache(0, tier)
                await cache.get_or_compute(str(number), _computing(number, 250_000))
                await tier.written()
            assert counted.of(REDIS_OPERATIONS, operation="put", outcome="error") > 3
            assert not tier.circuit_open
            first = await TieredEmbeddingCache(0, tier).get_or_compute("0", None)
            assert first is not None


def _computing(number: int, floats: int) -> Callable[[], Any]:
    async def compute() -> Embedding:
        return embedding(number, floats)

    return compute


async def test_a_password_is_used_and_never_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    with RedisServer(tmp_path, "--requirepass", "hunter2") as server:
        right = server.url.replace("redis://", "redis://:hunter2@")
        async with tier_at(right, **PATIENT) as tier:
            tier.put("k", lambda: b"value", 5)
            await tier.written()
            assert await tier.get("k") == b"value"
        for wrong in (right.replace("hunter2", "hunter3"), server.url):
            async with tier_at(wrong, **PATIENT) as tier:
                for _ in range(5):
                    assert await tier.get("k") is None
                await asyncio.to_thread(server.kill)
                assert await tier.get("k") is None
                await asyncio.to_thread(server.start)
    assert caplog.records
    assert "hunter" not in caplog.text
