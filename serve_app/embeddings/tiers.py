"""The embedding cache: memory, then an optional shared tier, then the encoder, once a key."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from functools import partial

from serve_app.cache.codec import decode_embedding, encode_embedding
from serve_app.cache.memory import ByteBoundedLru
from serve_app.cache.shared import SharedTier
from serve_app.core.single_flight import SingleFlight
from serve_app.core.types import CacheTier, Embedding
from serve_app.telemetry.metrics import CACHE_LOOKUPS

log = logging.getLogger(__name__)

_AGAIN_AFTER_S = 1.0
_MISSED = 1_024


class TieredEmbeddingCache:
    """`EmbeddingCache` over memory and an optional `SharedTier`."""

    def __init__(self, max_bytes: int, shared: SharedTier | None = None) -> None:
        self._memory: ByteBoundedLru[Embedding] = ByteBoundedLru(max_bytes)
        self._shared = shared
        self._missed: OrderedDict[str, float] = OrderedDict()
        self._flight: SingleFlight[tuple[Embedding, CacheTier]] = SingleFlight()

    async def get_or_compute(
        self, key: str, compute: Callable[[], Awaitable[Embedding]] | None
    ) -> tuple[Embedding, CacheTier] | None:
        """See `EmbeddingCache`.  The tier told is where this caller's embedding came from."""
        found = await self._get_or_compute(key, compute)
        if found is not None:  # else the caller asks again, with the image, and counts then
            CACHE_LOOKUPS.inc(cache="embedding", result=found[1].value)
        return found

    async def _get_or_compute(
        self, key: str, compute: Callable[[], Awaitable[Embedding]] | None
    ) -> tuple[Embedding, CacheTier] | None:
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
            self._missed.pop(key, None)
            self._shared.put(key, partial(encode_embedding, key, embedding), embedding.nbytes)
        return embedding, CacheTier.MISS

    async def _from_shared(self, key: str) -> Embedding | None:
        if self._shared is None or self._missed_lately(key):
            return None
        data = await self._shared.get(key)
        if data is None:
            self._missed[key] = time.monotonic()
            if len(self._missed) > _MISSED:
                self._missed.popitem(last=False)
            return None
        embedding = await asyncio.to_thread(decode_embedding, key, data)
        if embedding is None:
            CACHE_LOOKUPS.inc(cache="embedding", result="corrupt")
            log.warning("a value of the shared cache was damaged or foreign; it counts as a miss")
            return None
        self._memory.put(key, embedding, embedding.nbytes)
        return embedding

    def _missed_lately(self, key: str) -> bool:
        """Whether the shared tier did not have it a moment ago.

        A request may ask twice, first without the image and then with it; a tier that hangs is
        to cost it one time limit, not two.
        """
        at = self._missed.pop(key, None)
        return at is not None and time.monotonic() - at < _AGAIN_AFTER_S
