"""The tier shared by all replicas: bytes by key, outside the process."""

from __future__ import annotations

from typing import Protocol

from serve_app.domain.settings import CacheSettings


class SharedTier(Protocol):
    """Bytes by key.  Never raises: a tier that is down only misses."""

    async def get(self, key: str) -> bytes | None:
        """The bytes kept under a key, or None."""
        ...

    async def put(self, key: str, value: bytes) -> None:
        """Keep bytes under a key, if possible."""
        ...


def shared_tier(cache: CacheSettings) -> SharedTier | None:
    """Redis, where it is configured.  Its client is an optional dependency."""
    if cache.redis_url is None:
        return None
    from serve_app.cache.redis import RedisTier

    return RedisTier.connect(cache.redis_url, cache.redis_ttl_s)
