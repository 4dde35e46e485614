"""The tier shared by all replicas: a key-value store outside the process."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from serve_app.core.settings import CacheSettings


class SharedTier(Protocol):
    """Bytes by key.  Never raises: a tier that is down only misses."""

    async def get(self, key: str) -> bytes | None:
        """Return the value of a key, or None."""
        ...

    def put(self, key: str, value: Callable[[], bytes], nbytes: int) -> bool:
        """Store a value of about ``nbytes`` in the background, if possible.

        ``value`` returns the bytes; it is called in another thread, or never.

        Returns:
            Whether the write was accepted; it may still fail.
        """
        ...


def shared_tier(cache: CacheSettings) -> SharedTier | None:
    """Return the Redis tier if it is configured.  Its client is an optional dependency."""
    if cache.redis_url is None:
        return None
    from serve_app.cache.redis import RedisTier

    return RedisTier.connect(cache)
