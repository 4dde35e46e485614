"""The embedding cache: memory, then an optional shared tier, then one encoder call per key."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial

from cachetools import LRUCache, TTLCache

from serve_app.cache.shared import SharedTier, decode_embedding, encode_embedding
from serve_app.core.inference import Embedding
from serve_app.core.single_flight import SingleFlight
from serve_app.core.types import CacheTier
from serve_app.telemetry.metrics import CACHE_LOOKUPS

log = logging.getLogger(__name__)

_NEGATIVE_TTL_S = 1.0
_NEGATIVE_KEYS = 1_024


class TieredEmbeddingCache:
    """`EmbeddingCache` over memory and an optional `SharedTier`.

    A request may look up a key twice, first without the image and then with it.  The negative
    cache remembers misses of the shared tier in between, so that with a hanging tier the
    request waits for one timeout, not two.
    """

    def __init__(self, max_bytes: int, shared: SharedTier | None = None) -> None:
        self._memory: LRUCache[str, Embedding] = LRUCache(max_bytes, lambda e: e.nbytes)
        self._shared = shared
        self._negative_cache: TTLCache[str, bool] = TTLCache(
            _NEGATIVE_KEYS, _NEGATIVE_TTL_S, timer=lambda: time.monotonic()
        )
        self._flight: SingleFlight[tuple[Embedding, CacheTier]] = SingleFlight()

    async def get_or_compute(
        self, key: str, compute: Callable[[], Awaitable[Embedding]] | None
    ) -> tuple[Embedding, CacheTier] | None:
        """See `EmbeddingCache`.  The returned tier is the source of this caller's embedding."""
        found: tuple[Embedding, CacheTier] | None = None
        if (cached := self._memory.get(key)) is not None:
            found = cached, CacheTier.MEMORY
        elif compute is not None:
            found = await self._flight.run(key, lambda: self._fill(key, compute))
        elif (shared := await self._from_shared(key)) is not None:
            found = shared, CacheTier.REDIS
        if found is not None:  # else the caller retries with the image, and is counted then
            CACHE_LOOKUPS.inc(cache="embedding", result=found[1].value)
        return found

    async def _fill(
        self, key: str, compute: Callable[[], Awaitable[Embedding]]
    ) -> tuple[Embedding, CacheTier]:
        found = await self._from_shared(key)
        if found is not None:
            return found, CacheTier.REDIS
        embedding = await compute()
        self._keep(key, embedding)
        if self._shared is not None:
            self._negative_cache.pop(key, None)
            self._shared.put(key, partial(encode_embedding, key, embedding), embedding.nbytes)
        return embedding, CacheTier.MISS

    async def _from_shared(self, key: str) -> Embedding | None:
        if self._shared is None or self._negative_cache.pop(key, False):
            return None
        data = await self._shared.get(key)
        if data is None:
            self._negative_cache[key] = True
            return None
        embedding = await asyncio.to_thread(decode_embedding, key, data)
        if embedding is None:
            CACHE_LOOKUPS.inc(cache="embedding", result="corrupt")
            log.warning("invalid value in the shared cache: counted as a miss")
            return None
        self._keep(key, embedding)
        return embedding

    def _keep(self, key: str, embedding: Embedding) -> None:
        with suppress(ValueError):  # larger than the whole cache
            self._memory[key] = embedding
