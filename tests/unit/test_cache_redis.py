"""Redis as the shared tier: a help, never a need."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator

import fakeredis
import pytest
from redis.exceptions import ConnectionError as RedisConnectionError

from serve_app.cache import redis as redis_tier
from serve_app.cache.redis import RedisTier
from serve_app.cache.shared import shared_tier
from serve_app.domain.settings import CacheSettings


class Clock:
    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1_000.0
        monkeypatch.setattr(redis_tier.time, "monotonic", lambda: self.now)


class DeadClient:
    """Refuses everything and counts how often it was bothered."""

    def __init__(self, error: Exception) -> None:
        self.error = error
        self.calls = 0

    async def get(self, key: str) -> bytes:
        self.calls += 1
        raise self.error

    async def set(self, key: str, value: bytes, ex: int) -> None:
        self.calls += 1
        raise self.error


async def test_values_are_kept_for_the_configured_time() -> None:
    client = fakeredis.FakeAsyncRedis()
    tier = RedisTier(client, ttl_s=77)
    assert await tier.get("k") is None
    await tier.put("k", b"\x00\xff value")
    assert await tier.get("k") == b"\x00\xff value"
    (name,) = await client.keys()
    assert name == b"sam-serve:k"
    assert await client.ttl(name) == 77


@pytest.mark.parametrize("error", [RedisConnectionError("gone"), OSError("no route")])
async def test_after_a_failure_it_is_left_alone_for_some_seconds(
    monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    clock, client = Clock(monkeypatch), DeadClient(error)
    tier = RedisTier(client, ttl_s=10)  # type: ignore[arg-type]
    assert await tier.get("k") is None
    assert client.calls == 1
    for _ in range(10):
        assert await tier.get("k") is None
        await tier.put("k", b"value")
    assert client.calls == 1
    clock.now += 4.9
    assert await tier.get("k") is None
    assert client.calls == 1
    clock.now += 0.2
    await tier.put("k", b"value")
    assert client.calls == 2
    assert await tier.get("k") is None
    assert client.calls == 2


async def test_a_server_that_comes_back_is_used_again(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    server = fakeredis.FakeServer()
    tier = RedisTier(fakeredis.FakeAsyncRedis(server=server), ttl_s=10)
    await tier.put("k", b"value")
    server.connected = False
    assert await tier.get("k") is None
    server.connected = True
    assert await tier.get("k") is None
    clock.now += 6
    assert await tier.get("k") == b"value"


@pytest.fixture
def silent_server() -> Iterator[socket.socket]:
    """A server that lets connections queue up and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.setblocking(False)
        yield server


def _connections(server: socket.socket) -> int:
    """How many have been made."""
    count = 0
    while True:
        try:
            connection, _ = server.accept()
        except BlockingIOError:
            return count
        connection.close()
        count += 1


async def test_a_server_that_never_answers_is_tried_twice_for_a_moment(
    silent_server: socket.socket, caplog: pytest.LogCaptureFixture
) -> None:
    port = silent_server.getsockname()[1]
    tier = RedisTier.connect(f"redis://:secret@127.0.0.1:{port}/0", 10)
    started = time.perf_counter()
    assert await tier.get("k") is None
    await tier.put("k", b"value")
    assert time.perf_counter() - started < 5
    assert _connections(silent_server) == 2
    assert len(caplog.records) == 1
    assert "secret" not in caplog.text


async def test_a_dead_server_only_misses() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    tier = shared_tier(CacheSettings(redis_url=f"redis://127.0.0.1:{port}/0"))
    assert tier is not None
    assert await tier.get("k") is None
    await tier.put("k", b"value")


def test_without_an_address_there_is_no_shared_tier() -> None:
    assert shared_tier(CacheSettings()) is None
