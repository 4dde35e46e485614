"""Redis as the shared tier.  The `redis` package is an optional dependency.

Redis is best-effort: it may be absent, fail, hang and recover at any time.

* A lookup has a timeout; after it, the lookup counts as a miss.
* Values are written in the background, by one writer with a bounded queue.
* Three consecutive failures open a circuit breaker: lookups and writes are skipped until a
  background probe, every ``redis_probe_interval_s``, gets two pings through, the second quickly.

Connecting may take longer than the lookup timeout (TLS, a server that has just restarted).  So a
lookup that timed out continues in the background, for at most one second and at most as many as
there are connections: otherwise no connection would ever be established.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections import deque
from collections.abc import Awaitable, Callable
from contextvars import Context
from typing import Any, TypeVar

import redis.asyncio
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as ConnectionFailed
from redis.exceptions import ResponseError
from redis.exceptions import TimeoutError as TimedOut

from serve_app.core.settings import CacheSettings
from serve_app.telemetry.metrics import REDIS_BREAKER_OPEN, REDIS_OPERATIONS

log = logging.getLogger(__name__)

T = TypeVar("T")

_FAILURES = 3
_BACKGROUND_S = 1.0
"""Timeout of operations that no request waits for: connecting, writing, pinging."""

_SLICES = 5
"""Number of slices of a timeout.  Between them the event loop reads responses that have arrived: if
it was blocked for the whole timeout, only one slice has elapsed."""

_PREFIX = "sam-serve:"
_MAX_HEADER = 4_096
"""Maximum size of a value's checksum and tensor names, in bytes."""


class RedisTier:
    """A `SharedTier` in Redis.  Used from one event loop."""

    def __init__(self, client: redis.asyncio.Redis, settings: CacheSettings) -> None:
        self._client = client
        self._settings = settings
        self._slots = asyncio.Semaphore(settings.redis_connections)
        self._failures = 0  # consecutive ones, while the circuit is closed
        self._responded_at = -math.inf
        self._prober: asyncio.Task[None] | None = None  # while the circuit is open
        self._queue: deque[tuple[str, Callable[[], bytes], int]] = deque()
        self._queued_bytes = 0
        self._writer: asyncio.Task[None] | None = None
        self._late: set[asyncio.Task[Any]] = set()
        self._warned_errors: set[str] = set()
        REDIS_BREAKER_OPEN.set(0)

    @classmethod
    def connect(cls, settings: CacheSettings) -> RedisTier:
        """A tier at ``redis_url``; no connection is made yet."""
        if settings.redis_url is None:
            raise ValueError("cache.redis_url is not set")
        client = redis.asyncio.Redis.from_url(
            settings.redis_url,
            socket_timeout=_BACKGROUND_S,
            socket_connect_timeout=_BACKGROUND_S,
            # For lookups, the writer and the probe.
            max_connections=settings.redis_connections + 2,
            # The older protocol needs no handshake, which would be one more round trip.
            protocol=2,
            # One retry, for a connection that the server has closed; the default is ten.
            retry=Retry(NoBackoff(), 1, supported_errors=(ConnectionFailed,)),
        )
        return cls(client, settings)

    @property
    def circuit_open(self) -> bool:
        """Whether Redis has failed so often that lookups and writes are skipped."""
        return self._prober is not None

    async def get(self, key: str) -> bytes | None:
        """Return the value of a key; None if it is missing or late, or Redis is down."""
        if self.circuit_open:
            REDIS_OPERATIONS.inc(operation="get", outcome="skipped")
            return None
        started, sent = time.monotonic(), False

        async def lookup() -> bytes:
            nonlocal sent
            async with self._slots:
                sent = True
                async with asyncio.timeout(_BACKGROUND_S):
                    # Not GET: a value of any origin is read up to this size only.
                    end = self._settings.redis_value_bytes
                    value = await self._client.getrange(_PREFIX + key, 0, end)
                    return value if isinstance(value, bytes) else b""

        # In a separate context, since it may outlive the request.
        task = asyncio.create_task(lookup(), context=Context())
        try:
            if await self._in_time(task):
                value = await self._outcome("get", task)
                if value is not None:
                    self._failures = 0
                    self._responded_at = time.monotonic()
                return value or None
        finally:
            if not task.done():
                self._abandon(task, sent)
        if self._responded_at > started:
            # Other lookups got a response meanwhile: this process is busy, not Redis.
            REDIS_OPERATIONS.inc(operation="get", outcome="timeout")
        else:
            self._failed("get", "timeout", "TimeoutError")
        return None

    def put(self, key: str, value: Callable[[], bytes], nbytes: int) -> bool:
        """See `SharedTier.put`."""
        if self.circuit_open:
            REDIS_OPERATIONS.inc(operation="put", outcome="skipped")
            return False
        free = self._settings.redis_queue_bytes - self._queued_bytes
        if nbytes > min(free, self._settings.redis_value_bytes - _MAX_HEADER):
            REDIS_OPERATIONS.inc(operation="put", outcome="dropped")
            return False
        self._queue.append((key, value, nbytes))
        self._queued_bytes += nbytes
        if self._writer is None or self._writer.done():
            self._writer = asyncio.create_task(self._write(), context=Context())
        return True

    async def written(self) -> None:
        """Wait until all queued values are written."""
        while self._writer is not None and not self._writer.done():
            await asyncio.wait({self._writer})

    async def close(self) -> None:
        """Cancel background tasks and close the connections."""
        tasks = [t for t in (self._writer, self._prober, *self._late) if t is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._client.aclose()

    async def _ping(self) -> bool:
        """Return whether Redis responds, and fast enough for lookups."""
        try:
            async with asyncio.timeout(_BACKGROUND_S):
                # The first ping may have to connect.
                await self._client.ping()
                second = asyncio.ensure_future(self._client.ping())
                try:
                    return await self._in_time(second) and second.exception() is None
                finally:
                    self._abandon(second, sent=False)
        except Exception as exc:
            log.debug("redis does not respond yet (%s)", type(exc).__name__)
            return False

    async def _write(self) -> None:
        while self._queue:
            key, value, nbytes = self._queue.popleft()
            try:
                if self.circuit_open:
                    REDIS_OPERATIONS.inc(operation="put", outcome="skipped")
                else:
                    # Hashing megabytes would block the event loop.
                    data = await asyncio.to_thread(value)
                    await self._outcome("put", self._set(key, data))
            except Exception:
                log.exception("a value could not be written to the shared tier")
                REDIS_OPERATIONS.inc(operation="put", outcome="error")
            finally:
                self._queued_bytes -= nbytes

    async def _set(self, key: str, data: bytes) -> None:
        async with asyncio.timeout(_BACKGROUND_S):
            await self._client.set(_PREFIX + key, data, ex=self._settings.redis_ttl_s)

    async def _outcome(self, operation: str, result: Awaitable[T]) -> T | None:
        """Await an operation and count its outcome; None if it failed."""
        try:
            value = await result
        except ResponseError as exc:
            # Redis responds with an error, as to a write when its memory is full.
            REDIS_OPERATIONS.inc(operation=operation, outcome="error")
            self._warn_once(type(exc).__name__)
        except (TimedOut, TimeoutError) as exc:
            self._failed(operation, "timeout", type(exc).__name__)
        except Exception as exc:
            # Whatever the client raises if the server sends garbage.
            self._failed(operation, "error", type(exc).__name__)
        else:
            # A successful write does not reset the breaker: it may take longer than a lookup.
            REDIS_OPERATIONS.inc(operation=operation, outcome="ok")
            return value
        return None

    async def _in_time(self, task: asyncio.Task[Any]) -> bool:
        """Return whether the task is done within the lookup timeout."""
        for _ in range(_SLICES):
            await asyncio.wait({task}, timeout=self._settings.redis_timeout_s / _SLICES)
            if task.done():
                return True
        return False

    def _abandon(self, task: asyncio.Task[Any], sent: bool) -> None:
        if not sent:
            task.cancel()
        self._late.add(task)
        task.add_done_callback(self._forget)

    def _forget(self, task: asyncio.Task[Any]) -> None:
        self._late.discard(task)
        if not task.cancelled():
            # Its failure was counted when it timed out.
            task.exception()

    def _failed(self, operation: str, outcome: str, error: str) -> None:
        REDIS_OPERATIONS.inc(operation=operation, outcome=outcome)
        self._failures += 1
        if self._failures >= _FAILURES and not self.circuit_open:
            # Never the error's text: it may contain the address, and that a password.
            log.warning("redis failed %d times in a row (%s): circuit opened", _FAILURES, error)
            REDIS_BREAKER_OPEN.set(1)
            self._prober = asyncio.create_task(self._probe(), context=Context())

    def _warn_once(self, error: str) -> None:
        if error not in self._warned_errors:
            self._warned_errors.add(error)
            log.warning("redis rejects an operation (%s); logged once", error)

    async def _probe(self) -> None:
        """Ping in the background until Redis responds, then close the circuit."""
        responded = False
        while not responded:
            await asyncio.sleep(self._settings.redis_probe_interval_s)
            responded = await self._ping()
        self._prober, self._failures = None, 0
        log.info("redis responds again: circuit closed")
        REDIS_BREAKER_OPEN.set(0)
