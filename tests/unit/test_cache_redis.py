"""Redis as the shared tier: a help, never a need.  `tests/faults` has the real server."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from typing import Any

import fakeredis
import pytest
import redis.asyncio
from pydantic import ValidationError
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import OutOfMemoryError

from serve_app.cache.redis import RedisTier
from serve_app.cache.shared import shared_tier
from serve_app.core.settings import CacheSettings, GraphSettings
from serve_app.telemetry.metrics import REDIS_BREAKER_OPEN, REDIS_OPERATIONS

from ..clocks import VirtualTime

URL = "redis://user:hunter2@127.0.0.1:9/0"


def _settings(**more: Any) -> CacheSettings:
    # Long time limits: no test here waits for one, and a busy machine is to fail none.
    return CacheSettings(
        **{"redis_url": URL, "redis_timeout_s": 1.0, "redis_probe_interval_s": 8.0} | more
    )


class Client:
    """Answers by `replies`, or raises them; counts how often it was bothered."""

    def __init__(self, *replies: Any) -> None:
        self.replies = list(replies)
        self.calls: list[str] = []
        self.gate = asyncio.Event()
        self.gate.set()

    async def _reply(self, name: str) -> Any:
        self.calls.append(name)
        await self.gate.wait()
        # As if it were read piece by piece.
        for _ in range(5):
            await asyncio.sleep(0)
        reply = self.replies.pop(0) if len(self.replies) > 1 else self.replies[0]
        if isinstance(reply, Exception):
            raise reply
        return reply

    async def getrange(self, key: str, start: int, end: int) -> Any:
        if key.endswith("stuck"):
            await asyncio.Event().wait()
        return await self._reply("get")

    async def set(self, key: str, value: bytes, ex: int) -> Any:
        return await self._reply("set")

    async def ping(self) -> Any:
        return await self._reply("ping")

    async def aclose(self) -> None:
        self.calls.append("close")


def _tier(client: Client, **more: Any) -> RedisTier:
    return RedisTier(client, _settings(**more))  # type: ignore[arg-type]


async def _until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not true():  # noqa: ASYNC110
            await asyncio.sleep(0)


async def test_values_are_kept_for_the_configured_time() -> None:
    client = fakeredis.FakeAsyncRedis()
    tier = RedisTier(client, _settings(redis_ttl_s=77))
    assert await tier.get("k") is None
    tier.put("k", lambda: b"\x00\xff value", 7)
    await tier.written()
    assert await tier.get("k") == b"\x00\xff value"
    (name,) = await client.keys()
    assert name == b"sam-serve:k"
    assert await client.ttl(name) == 77
    await tier.close()


@pytest.mark.parametrize(
    "error", [RedisConnectionError(URL), OSError("no route"), ValueError("invalid literal")]
)
async def test_after_three_failures_the_circuit_is_open(
    error: Exception, counted: Any, our_log: Any, caplog: pytest.LogCaptureFixture
) -> None:
    client = Client(error)
    tier = _tier(client)
    for asked in (1, 2, 3):
        assert not tier.circuit_open
        assert await tier.get("k") is None
        assert client.calls == ["get"] * asked
    assert tier.circuit_open
    for _ in range(10):
        assert await tier.get("k") is None
        tier.put("k", lambda: b"value", 5)
    await tier.written()
    assert client.calls == ["get"] * 3
    assert counted.of(REDIS_OPERATIONS, operation="get", outcome="error") == 3
    assert counted.of(REDIS_OPERATIONS, operation="get", outcome="skipped") == 10
    assert counted.of(REDIS_OPERATIONS, operation="put", outcome="skipped") == 10
    assert counted.of(REDIS_BREAKER_OPEN) == 1
    assert len(our_log()) == 1
    assert "hunter2" not in caplog.text
    await tier.close()


async def test_an_answer_between_failures_keeps_it_in_use() -> None:
    gone = RedisConnectionError("gone")
    tier = _tier(Client(gone, gone, b"value", gone, gone, b"value"))
    found = [await tier.get("k") for _ in range(6)]
    assert found == [None, None, b"value", None, None, b"value"]
    assert not tier.circuit_open


async def test_it_is_asked_again_once_a_ping_in_the_background_was_answered(counted: Any) -> None:
    client = Client(*[RedisConnectionError("gone")] * 5, b"fine")
    tier = _tier(client, redis_probe_interval_s=0.001)
    for _ in range(3):
        await tier.get("k")
    await _until(lambda: not tier.circuit_open)
    # Two pings that failed, then one to connect and one that shows how quick it is.
    assert client.calls == ["get"] * 3 + ["ping"] * 4
    assert await tier.get("k") == b"fine"
    assert counted.of(REDIS_BREAKER_OPEN) == 0
    await tier.close()


async def test_before_each_ping_it_rests(virtual_time: VirtualTime) -> None:
    client = Client(RedisConnectionError("gone"))
    tier = _tier(client, redis_probe_interval_s=8.0)
    for _ in range(3):
        await tier.get("k")
    await asyncio.sleep(1)
    for pings in range(3):
        await asyncio.sleep(6)  # a second before the next ping
        assert client.calls.count("ping") == pings
        await asyncio.sleep(2)
        assert client.calls.count("ping") == pings + 1
    assert tier.circuit_open
    await tier.close()


async def test_an_answered_ping_forgets_the_failures() -> None:
    gone = RedisConnectionError("gone")
    client = Client(gone, gone, gone, b"PONG", b"PONG", gone)
    tier = _tier(client, redis_probe_interval_s=0.001)
    for _ in range(3):
        await tier.get("k")
    await _until(lambda: not tier.circuit_open)
    for _ in range(3):
        assert not tier.circuit_open
        await tier.get("k")
    assert tier.circuit_open
    await tier.close()


async def test_what_began_before_it_opened_neither_closes_it_nor_probes_again() -> None:
    client = Client(b"value")
    client.gate.clear()
    tier = _tier(client)
    early = asyncio.create_task(tier.get("k"))
    await _until(lambda: bool(client.calls))
    for _ in range(4):
        tier._failed("get", "error", "ConnectionError")
    prober = tier._prober
    client.gate.set()
    assert await early == b"value"
    tier._failed("get", "error", "ConnectionError")
    assert tier.circuit_open
    assert tier._prober is prober
    await tier.close()


async def test_one_that_answers_once_and_hangs_up_keeps_the_circuit_open() -> None:
    gone = RedisConnectionError("gone")
    client = Client(gone, gone, gone, b"PONG", gone, b"fine")
    tier = _tier(client, redis_probe_interval_s=0.001)
    for _ in range(3):
        await tier.get("k")
    await _until(lambda: not tier.circuit_open)
    assert client.calls == ["get"] * 3 + ["ping"] * 4
    await tier.close()


async def test_a_late_lookup_is_a_miss_and_keeps_its_connection(counted: Any) -> None:
    client = Client(b"value")
    client.gate.clear()
    tier = _tier(client, redis_timeout_s=0.001, redis_connections=2)
    assert [await tier.get("k") for _ in range(2)] == [None, None]
    assert counted.of(REDIS_OPERATIONS, operation="get", outcome="timeout") == 2
    client.gate.set()
    await _until(lambda: not tier._late)
    tier._settings = _settings()
    assert await tier.get("k") == b"value"


async def test_lookups_that_find_no_connection_are_failures_too(counted: Any) -> None:
    client = Client(b"value")
    client.gate.clear()
    tier = _tier(client, redis_timeout_s=0.001, redis_connections=1)
    assert [await tier.get("k") for _ in range(3)] == [None] * 3
    assert (client.calls, tier.circuit_open) == (["get"], True)
    client.gate.set()
    await tier.close()


async def test_while_others_are_answered_a_late_lookup_is_not_held_against_redis(
    counted: Any,
) -> None:
    client = Client(b"value")
    tier = _tier(client, redis_timeout_s=0.1, redis_connections=9)
    for late in range(1, 5):
        stuck = asyncio.create_task(tier.get("stuck"))
        while not stuck.done():
            await tier.get("k")
        assert await stuck is None
        assert counted.of(REDIS_OPERATIONS, operation="get", outcome="timeout") >= late
        assert not tier.circuit_open
    await tier.close()


async def test_writes_that_succeed_do_not_excuse_lookups_that_are_late() -> None:
    client = Client(b"value")
    tier = _tier(client, redis_timeout_s=0.001, redis_connections=9)
    for _ in range(3):
        assert not tier.circuit_open
        client.gate.clear()
        assert await tier.get("k") is None
        client.gate.set()
        tier.put("k", lambda: b"value", 5)
        await tier.written()
    assert tier.circuit_open
    await tier.close()


async def test_a_loop_that_was_held_up_still_reads_what_has_come(
    virtual_time: VirtualTime,
) -> None:
    client = Client(b"value")
    client.gate.clear()
    tier = _tier(client, redis_timeout_s=0.5)
    waiting = asyncio.create_task(tier.get("k"))
    await _until(lambda: bool(client.calls))
    # The event loop stands still for longer than the time limit; meanwhile the answer comes.
    virtual_time.now += 0.6
    client.gate.set()
    assert await waiting == b"value"


async def test_a_refusal_is_counted_and_told_once_and_lookups_go_on(
    counted: Any, our_log: Any
) -> None:
    client = Client(OutOfMemoryError("OOM command not allowed"))
    tier = _tier(client)
    for _ in range(10):
        tier.put("k", lambda: b"value", 5)
    await tier.written()
    assert counted.of(REDIS_OPERATIONS, operation="put", outcome="error") == 10
    assert (len(our_log()), tier.circuit_open) == (1, False)
    client.replies = [b"value"]
    assert await tier.get("k") == b"value"


async def test_nobody_waits_for_a_write_and_what_finds_no_place_is_dropped(counted: Any) -> None:
    client = Client(True)
    client.gate.clear()
    tier = _tier(client, redis_queue_bytes=100, redis_value_bytes=10_000)
    for _ in range(5):
        tier.put("k", lambda: b"value", 30)
    assert counted.of(REDIS_OPERATIONS, operation="put", outcome="dropped") == 2
    client.gate.set()
    await tier.written()
    assert counted.of(REDIS_OPERATIONS, operation="put", outcome="ok") == 3
    # There is place again, but not for more than a value may have.
    tier.put("k", lambda: b"value", 90)
    tier = _tier(client, redis_value_bytes=10_000)
    tier.put("k", lambda: b"value", 9_999)
    assert counted.of(REDIS_OPERATIONS, operation="put", outcome="dropped") == 3
    await tier.written()


async def test_a_value_that_cannot_be_made_stops_no_other(
    counted: Any, caplog: pytest.LogCaptureFixture
) -> None:
    client = Client(True)
    tier = _tier(client)
    tier.put("bad", lambda: 1 // 0, 5)  # type: ignore[arg-type, return-value]
    tier.put("good", lambda: b"value", 5)
    await tier.written()
    assert client.calls == ["set"]
    assert counted.of(REDIS_OPERATIONS, operation="put", outcome="error") == 1
    assert "could not be written" in caplog.text


async def test_no_more_is_read_of_a_value_than_one_may_have() -> None:
    client = fakeredis.FakeAsyncRedis()
    await client.set("sam-serve:k", bytes(10_000))
    tier = RedisTier(client, _settings(redis_value_bytes=5_000))
    found = await tier.get("k")
    assert found is not None
    assert len(found) == 5_001
    await tier.close()


async def test_a_caller_who_leaves_harms_nobody() -> None:
    client = Client(b"value")
    client.gate.clear()
    tier = _tier(client)
    leaving = asyncio.create_task(tier.get("k"))
    await _until(lambda: bool(client.calls))
    leaving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await leaving
    client.gate.set()
    assert await tier.get("k") == b"value"
    assert not tier.circuit_open


async def test_connections_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    tier = RedisTier.connect(_settings(redis_connections=5))
    pool = tier._client.connection_pool
    assert isinstance(pool, redis.asyncio.ConnectionPool)
    assert pool.max_connections == 7
    assert pool.connection_kwargs["socket_timeout"] <= 1


async def test_a_dead_server_only_misses() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    tier = shared_tier(CacheSettings(redis_url=f"redis://127.0.0.1:{port}/0"))
    assert isinstance(tier, RedisTier)
    assert await tier.get("k") is None
    tier.put("k", lambda: b"value", 5)
    await tier.written()
    await tier.close()


def test_without_an_address_there_is_no_shared_tier() -> None:
    assert shared_tier(CacheSettings()) is None
    with pytest.raises(ValueError, match="redis_url"):
        RedisTier.connect(CacheSettings())


def test_an_address_is_never_shown() -> None:
    assert "hunter2" not in repr(GraphSettings.model_validate({"cache": {"redis_url": URL}}))
    for wrong in (
        {"cache": {"redis_url": URL.replace("redis:", "http:")}},
        {"cache": {"redis_url": [URL]}},
        {"cache": {"redis_url": URL, "redis_ttl_s": 0}},
        {"cache": {"redis_url": URL}, "router": {"default": "unknown"}},
        {"cache": URL},
    ):
        with pytest.raises(ValidationError) as caught:
            GraphSettings.model_validate(wrong)
        assert "hunter2" not in str(caught.value)
