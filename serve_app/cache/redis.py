"""Redis as the shared tier.  The `redis` package is an optional dependency.

Redis is a help, never a need, and may be absent, die, hang and return at any time:

* a lookup has a time limit, and what does not come within it is a miss;
* values are written off the requests' path, by one writer with a bounded queue;
* after three failures in a row nobody asks any more, but a ping in the background every
  ``redis_probe_interval_s``, until two are answered, the second one quickly.

A connection may take longer to make than a lookup may last (TLS, a server that has just come
back).  So a lookup whose time is over goes on in the background, for one second at most and only
as many as there are connections: else no connection would ever be completed.
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

from serve_app.cache.breaker import Breaker
from serve_app.core.settings import CacheSettings
from serve_app.telemetry.catalogue import REDIS_BREAKER_OPEN, REDIS_OPERATIONS

log = logging.getLogger(__name__)

T = TypeVar("T")

_FAILURES = 3
_BACKGROUND_S = 1.0
"""For what no request waits for: connecting, writing, pinging."""

_SLICES = 5
"""A time limit is waited for in this many parts, each of which lets the event loop read what has
come: a loop that was held up for the whole limit has used up one part of it, not all."""

_PREFIX = "sam-serve:"
_HEAD = 4_096
"""At most what checksum and names of tensors add to a value."""


class RedisTier:
    """A `SharedTier` in Redis.  Used from one event loop."""

    def __init__(self, client: redis.asyncio.Redis, settings: CacheSettings) -> None:
        self._client = client
        self._settings = settings
        self._slots = asyncio.Semaphore(settings.redis_connections)
        self._breaker = Breaker(_FAILURES, settings.redis_probe_interval_s)
        self._answered_at = -math.inf
        self._prober: asyncio.Task[None] | None = None
        self._queue: deque[tuple[str, Callable[[], bytes], int]] = deque()
        self._queued_bytes = 0
        self._writer: asyncio.Task[None] | None = None
        self._late: set[asyncio.Task[Any]] = set()
        self._refusals_told: set[str] = set()
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
            # Lookups, the writer and the ping.
            max_connections=settings.redis_connections + 2,
            # The older protocol needs no word of greeting, which would be one more way.
            protocol=2,
            # Once, for a connection that the server has closed; the default is ten times.
            retry=Retry(NoBackoff(), 1, supported_errors=(ConnectionFailed,)),
        )
        return cls(client, settings)

    @property
    def left_alone(self) -> bool:
        """Whether Redis has failed so often that it is not asked now."""
        return self._breaker.is_open

    async def get(self, key: str) -> bytes | None:
        """The bytes kept under a key; None when missing, late, or Redis is down."""
        if self._breaker.is_open:
            REDIS_OPERATIONS.inc(operation="get", outcome="skipped")
            return None
        began, sent = time.monotonic(), False

        async def lookup() -> bytes:
            nonlocal sent
            async with self._slots:
                sent = True
                async with asyncio.timeout(_BACKGROUND_S):
                    # Not GET: no value is longer than this, whoever has written it.
                    end = self._settings.redis_value_bytes
                    value = await self._client.getrange(_PREFIX + key, 0, end)
                    return value if isinstance(value, bytes) else b""

        # In a context of its own, since it may outlive the request.
        task = asyncio.create_task(lookup(), context=Context())
        try:
            if await self._in_time(task):
                value = await self._told("get", task)
                if value is not None:
                    self._breaker.succeeded()
                    self._answered_at = time.monotonic()
                return value or None
        finally:
            if not task.done():
                self._leave(task, sent)
        if self._answered_at > began:
            # Others were answered meanwhile: this process is busy, Redis is not to blame.
            REDIS_OPERATIONS.inc(operation="get", outcome="timeout")
        else:
            self._failed("get", "timeout", "TimeoutError")
        return None

    def put(self, key: str, value: Callable[[], bytes], nbytes: int) -> bool:
        """See `SharedTier.put`."""
        if self._breaker.is_open:
            REDIS_OPERATIONS.inc(operation="put", outcome="skipped")
            return False
        free = self._settings.redis_queue_bytes - self._queued_bytes
        if nbytes > min(free, self._settings.redis_value_bytes - _HEAD):
            REDIS_OPERATIONS.inc(operation="put", outcome="dropped")
            return False
        self._queue.append((key, value, nbytes))
        self._queued_bytes += nbytes
        if self._writer is None or self._writer.done():
            self._writer = asyncio.create_task(self._write(), context=Context())
        return True

    async def written(self) -> None:
        """Returns when nothing waits to be written."""
        while self._writer is not None and not self._writer.done():
            await asyncio.wait({self._writer})

    async def close(self) -> None:
        """Ends what runs in the background, and the connections."""
        tasks = [t for t in (self._writer, self._prober, *self._late) if t is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._client.aclose()

    async def _answers(self) -> bool:
        """Whether Redis is there, and so quick that lookups can be in time."""
        try:
            async with asyncio.timeout(_BACKGROUND_S):
                # The first one may have to connect.
                await self._client.ping()
                second = asyncio.ensure_future(self._client.ping())
                try:
                    return await self._in_time(second) and second.exception() is None
                finally:
                    self._leave(second, sent=False)
        except Exception as exc:
            log.debug("redis does not answer yet (%s)", type(exc).__name__)
            return False

    async def _write(self) -> None:
        while self._queue:
            key, value, nbytes = self._queue.popleft()
            try:
                if self._breaker.is_open:
                    REDIS_OPERATIONS.inc(operation="put", outcome="skipped")
                else:
                    # Hashing some megabytes would hold up the event loop.
                    data = await asyncio.to_thread(value)
                    await self._told("put", self._set(key, data))
            except Exception:
                log.exception("a value could not be written to the shared tier")
                REDIS_OPERATIONS.inc(operation="put", outcome="error")
            finally:
                self._queued_bytes -= nbytes

    async def _set(self, key: str, data: bytes) -> None:
        async with asyncio.timeout(_BACKGROUND_S):
            await self._client.set(_PREFIX + key, data, ex=self._settings.redis_ttl_s)

    async def _told(self, operation: str, outcome: Awaitable[T]) -> T | None:
        """Await and count it; None if it failed."""
        try:
            value = await outcome
        except ResponseError as exc:
            # Redis is there and says no, such as to a write when its memory is full.
            REDIS_OPERATIONS.inc(operation=operation, outcome="error")
            self._tell_refusal(type(exc).__name__)
        except (TimedOut, TimeoutError) as exc:
            self._failed(operation, "timeout", type(exc).__name__)
        except Exception as exc:
            # Whatever the client makes of a server that answers nonsense.
            self._failed(operation, "error", type(exc).__name__)
        else:
            # A write that succeeds says little: it may take longer than a lookup.
            REDIS_OPERATIONS.inc(operation=operation, outcome="ok")
            return value
        return None

    async def _in_time(self, task: asyncio.Task[Any]) -> bool:
        """Whether it was done within the time limit of a lookup."""
        for _ in range(_SLICES):
            await asyncio.wait({task}, timeout=self._settings.redis_timeout_s / _SLICES)
            if task.done():
                return True
        return False

    def _leave(self, task: asyncio.Task[Any], sent: bool) -> None:
        if not sent:
            task.cancel()
        self._late.add(task)
        task.add_done_callback(self._forget)

    def _forget(self, task: asyncio.Task[Any]) -> None:
        self._late.discard(task)
        if not task.cancelled():
            # Its failure was told when its time was over.
            task.exception()

    def _failed(self, operation: str, outcome: str, error: str) -> None:
        REDIS_OPERATIONS.inc(operation=operation, outcome=outcome)
        if self._breaker.failed(time.monotonic()):
            # Never the error's text: it may hold the address, and this one a password.
            log.warning("redis failed %d times in a row (%s): left alone", _FAILURES, error)
            REDIS_BREAKER_OPEN.set(1)
            self._prober = asyncio.create_task(self._probe(), context=Context())

    def _tell_refusal(self, error: str) -> None:
        if error not in self._refusals_told:
            self._refusals_told.add(error)
            log.warning("redis refuses an operation (%s); told once", error)

    async def _probe(self) -> None:
        """Ping until an answer comes.  No request waits for this."""
        while self._breaker.is_open:
            await asyncio.sleep(self._breaker.rest_left(time.monotonic()))
            if not self._breaker.probe(time.monotonic()):
                continue
            answered = False
            try:
                answered = await self._answers()
            finally:
                self._breaker.probed(answered, time.monotonic())
        log.info("redis answers again")
        REDIS_BREAKER_OPEN.set(0)
