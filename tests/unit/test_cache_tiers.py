"""The embedding cache: memory, the shared tier, the encoder, in this order and once a key."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from types import SimpleNamespace

import numpy as np
import pytest

from serve_app.cache.shared import encode_embedding
from serve_app.core.inference import Embedding
from serve_app.core.types import CacheTier
from serve_app.embeddings import tiers
from serve_app.embeddings.tiers import TieredEmbeddingCache


class DictTier:
    """A shared tier that remembers what it was asked."""

    def __init__(self) -> None:
        self.kept: dict[str, bytes] = {}
        self.gets = 0

    async def get(self, key: str) -> bytes | None:
        self.gets += 1
        return self.kept.get(key)

    def put(self, key: str, value: Callable[[], bytes], nbytes: int) -> bool:
        self.kept[key] = value()
        return True


class Encoder:
    def __init__(self, value: float = 1.0) -> None:
        self.calls = 0
        self.gate = asyncio.Event()
        self.gate.set()
        self.error: Exception | None = None
        self.embedding = Embedding({"e": np.full(100, value, np.float32)}, height=3, width=4)

    async def __call__(self) -> Embedding:
        self.calls += 1
        await self.gate.wait()
        if self.error is not None:
            raise self.error
        return self.embedding


async def test_a_miss_is_computed_then_held_in_memory() -> None:
    cache, encoder = TieredEmbeddingCache(10_000), Encoder()
    assert await cache.get_or_compute("k", encoder) == (encoder.embedding, CacheTier.MISS)
    assert await cache.get_or_compute("k", encoder) == (encoder.embedding, CacheTier.MEMORY)
    assert await cache.get_or_compute("k", None) == (encoder.embedding, CacheTier.MEMORY)
    assert encoder.calls == 1


async def test_what_is_missing_and_not_computable_is_none() -> None:
    assert await TieredEmbeddingCache(10_000).get_or_compute("k", None) is None
    assert await TieredEmbeddingCache(10_000, DictTier()).get_or_compute("k", None) is None


async def test_twenty_identical_requests_encode_once() -> None:
    cache, encoder = TieredEmbeddingCache(10_000), Encoder()
    encoder.gate.clear()
    callers = [asyncio.create_task(cache.get_or_compute("k", encoder)) for _ in range(20)]
    await asyncio.sleep(0)
    encoder.gate.set()
    found = await asyncio.gather(*callers)
    assert encoder.calls == 1
    assert {f is not None and f[0] is encoder.embedding for f in found} == {True}


async def test_the_bound_is_kept() -> None:
    cache, first, second = TieredEmbeddingCache(500), Encoder(), Encoder()
    await cache.get_or_compute("first", first)
    await cache.get_or_compute("second", second)  # 400 bytes each
    assert await cache.get_or_compute("first", None) is None
    assert await cache.get_or_compute("second", None) is not None


async def test_without_memory_every_request_computes() -> None:
    cache, encoder = TieredEmbeddingCache(0), Encoder()
    for _ in range(2):
        assert await cache.get_or_compute("k", encoder) == (encoder.embedding, CacheTier.MISS)
    assert encoder.calls == 2


async def test_a_failure_is_told_and_not_kept() -> None:
    shared = DictTier()
    cache, encoder = TieredEmbeddingCache(10_000, shared), Encoder()
    encoder.error = ValueError("no memory")
    with pytest.raises(ValueError, match="no memory"):
        await cache.get_or_compute("k", encoder)
    assert shared.kept == {}
    encoder.error = None
    assert await cache.get_or_compute("k", encoder) == (encoder.embedding, CacheTier.MISS)


async def test_another_replica_reads_what_one_has_computed() -> None:
    shared, encoder, other = DictTier(), Encoder(7.0), Encoder()
    await TieredEmbeddingCache(10_000, shared).get_or_compute("k", encoder)
    for compute in (None, other):
        cache = TieredEmbeddingCache(10_000, shared)
        found = await cache.get_or_compute("k", compute)
        assert found is not None
        assert found[1] is CacheTier.REDIS
        np.testing.assert_array_equal(found[0].tensors["e"], encoder.embedding.tensors["e"])
        # It is in memory now, and the shared tier is not asked again.
        asked = shared.gets
        again = await cache.get_or_compute("k", None)
        assert again == (found[0], CacheTier.MEMORY)
        assert shared.gets == asked
    assert other.calls == 0


async def test_a_damaged_or_swapped_value_counts_as_a_miss_and_is_mended() -> None:
    good = encode_embedding("k", Encoder().embedding)
    for bad in (good[:-1], b"", b"\x80\x04N.", encode_embedding("other", Encoder(9).embedding)):
        shared, encoder = DictTier(), Encoder()
        shared.kept["k"] = bad
        cache = TieredEmbeddingCache(10_000, shared)
        assert await cache.get_or_compute("k", None) is None
        assert await cache.get_or_compute("k", encoder) == (encoder.embedding, CacheTier.MISS)
        assert shared.kept["k"] == good


async def test_a_request_that_asks_twice_asks_the_shared_tier_once() -> None:
    shared, encoder = DictTier(), Encoder()
    cache = TieredEmbeddingCache(0, shared)
    assert await cache.get_or_compute("k", None) is None
    assert await cache.get_or_compute("k", encoder) == (encoder.embedding, CacheTier.MISS)
    assert shared.gets == 1
    # It was put there, so the next one asks again.
    found = await cache.get_or_compute("k", None)
    assert found is not None
    assert (found[1], shared.gets) == (CacheTier.REDIS, 2)


async def test_what_was_used_last_stays_in_memory() -> None:
    cache = TieredEmbeddingCache(800)
    encoders = {key: Encoder(value) for value, key in enumerate("abc")}
    for key in "ab":
        await cache.get_or_compute(key, encoders[key])
    assert await cache.get_or_compute("a", None) is not None  # now b is the oldest
    await cache.get_or_compute("c", encoders["c"])
    found = {key for key in "abc" if await cache.get_or_compute(key, None) is not None}
    assert found == {"a", "c"}


async def test_nothing_is_evicted_for_what_is_too_large_to_be_kept() -> None:
    cache, small, large = TieredEmbeddingCache(400), Encoder(), Encoder()
    large.embedding = Embedding({"e": np.zeros(101, np.float32)}, height=3, width=4)
    await cache.get_or_compute("small", small)
    assert await cache.get_or_compute("large", large) == (large.embedding, CacheTier.MISS)
    assert await cache.get_or_compute("large", None) is None
    assert await cache.get_or_compute("small", None) is not None


async def test_a_miss_of_the_shared_tier_is_remembered_for_a_moment_only(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = 1000.0
    monkeypatch.setattr(tiers, "time", SimpleNamespace(monotonic=lambda: now))
    shared = DictTier()
    cache = TieredEmbeddingCache(0, shared)
    assert await cache.get_or_compute("k", None) is None
    now += 1.5
    assert await cache.get_or_compute("k", None) is None
    assert shared.gets == 2
