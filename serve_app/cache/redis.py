"""Redis as the shared tier.  The `redis` package is an optional dependency."""

from __future__ import annotations

import logging
import time

import redis.asyncio
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

log = logging.getLogger(__name__)

_TIMEOUT_S = 0.25
_RETRY_AFTER_S = 5.0
_PREFIX = "sam-serve:"


class RedisTier:
    """A `SharedTier` in Redis.

    Redis is a help, never a need: after a failure it is left alone for some seconds, and every
    failure counts as a miss.
    """

    def __init__(self, client: redis.asyncio.Redis, ttl_s: int) -> None:
        self._client = client
        self._ttl_s = ttl_s
        self._closed_until = 0.0

    @classmethod
    def connect(cls, url: str, ttl_s: int) -> RedisTier:
        """A tier at ``redis://host:port/db``; no connection is made yet."""
        client = redis.asyncio.Redis.from_url(
            url,
            socket_timeout=_TIMEOUT_S,
            socket_connect_timeout=_TIMEOUT_S,
            # Once, for a connection that the server has closed; the default is ten times.
            retry=Retry(NoBackoff(), 1),
        )
        return cls(client, ttl_s)

    async def get(self, key: str) -> bytes | None:
        """The bytes kept under a key; None when missing or Redis is down."""
        if time.monotonic() < self._closed_until:
            return None
        try:
            value = await self._client.get(_PREFIX + key)
        except (RedisError, OSError) as exc:
            self._leave_alone(exc)
            return None
        return value if isinstance(value, bytes) else None

    async def put(self, key: str, value: bytes) -> None:
        """Keep bytes for the configured time, if Redis is up."""
        if time.monotonic() < self._closed_until:
            return
        try:
            await self._client.set(_PREFIX + key, value, ex=self._ttl_s)
        except (RedisError, OSError) as exc:
            self._leave_alone(exc)

    def _leave_alone(self, exc: Exception) -> None:
        self._closed_until = time.monotonic() + _RETRY_AFTER_S
        log.warning(
            "redis failed (%s); it is left alone for %gs", type(exc).__name__, _RETRY_AFTER_S
        )
