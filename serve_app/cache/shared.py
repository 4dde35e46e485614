"""The tier shared by all replicas: bytes by key, outside the process."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from serve_app.core.settings import CacheSettings


class SharedTier(Protocol):
    """Bytes by key.  Never raises: a tier that is down only misses."""

    async def get(self, key: str) -> bytes | None:
        """The bytes kept under a key, or None."""
        ...

    def put(self, key: str, value: Callable[[], bytes], nbytes: int) -> bool:
        """Keep bytes under a key, if possible; nobody waits for that.

        Args:
            key: the name to find it by.
            value: makes the bytes; called in another thread, or never.
            nbytes: about how many they are.

        Answers:
            whether it will be tried.
        """
        ...


def shared_tier(cache: CacheSettings) -> SharedTier | None:
    """Redis, where it is configured.  Its client is an optional dependency."""
    if cache.redis_url is None:
        return None
    from serve_app.cache.redis import RedisTier

    return RedisTier.connect(cache)
