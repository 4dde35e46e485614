"""The embedding cache: memory, then an optional shared tier, then the encoder, once a key."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from serve_app.cache.codec import decode_embedding, encode_embedding
from serve_app.cache.memory import ByteBoundedLru
from serve_app.cache.shared import SharedTier
from serve_app.cache.single_flight import SingleFlight
from serve_app.domain.types import CacheTier, Embedding

log = logging.getLogger(__name__)


class TieredEmbeddingCache:
    """`EmbeddingCache` over memory and an optional `SharedTier`."""

    def __init__(self, max_bytes: int, shared: SharedTier | None = None) -> None:
        self._memory: ByteBoundedLru[Embedding] = ByteBoundedLru(max_bytes)
        self._shared = shared
        self._flight: SingleFlight[tuple[Embedding, CacheTier]] = SingleFlight()

    async def get_or_compute(
        self, key: str, compute: Callable[[], Awaitable[Embedding]] | None
    ) -> tuple[Embedding, CacheTier] | None:
        """See `EmbeddingCache`.  The tier told is where this caller's embedding came from."""
        held = self._memory.get(key)
        if held is not None:
            return held, CacheTier.MEMORY
        if compute is None:
            if self._shared is None:
                return None
            found = await self._from_shared(key)
            return None if found is None else (found, CacheTier.REDIS)
        return await self._flight.run(key, lambda: self._fill(key, compute))

    async def _fill(
        self, key: str, compute: Callable[[], Awaitable[Embedding]]
    ) -> tuple[Embedding, CacheTier]:
        found = await self._from_shared(key)
        if found is not None:
            return found, CacheTier.REDIS
        embedding = await compute()
        self._memory.put(key, embedding, embedding.nbytes)
        if self._shared is not None:
            # Hashing some megabytes would hold up the event loop.
            data = await asyncio.to_thread(encode_embedding, key, embedding)
            await self._shared.put(key, data)
        return embedding, CacheTier.MISS

    async def _from_shared(self, key: str) -> Embedding | None:
        if self._shared is None:
            return None
        data = await self._shared.get(key)
        if data is None:
            return None
        embedding = await asyncio.to_thread(decode_embedding, key, data)
        if embedding is None:
            log.warning("a value of the shared cache was damaged or foreign; it counts as a miss")
            return None
        self._memory.put(key, embedding, embedding.nbytes)
        return embedding
