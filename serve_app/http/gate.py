"""Admission of requests: API keys, rate limits, concurrent requests, announced body sizes."""

from __future__ import annotations

import hashlib
import hmac
import math
import re
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable
from pathlib import Path

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve_app.core.errors import (
    Overloaded,
    PayloadTooLarge,
    RateLimited,
    SamServeError,
    ShuttingDown,
    Unauthorized,
)
from serve_app.core.limits import Limits
from serve_app.core.settings import ApiKey, SecuritySettings
from serve_app.http.errors import count_rejection, error_response
from serve_app.http.request_info import NONE, PROBES, RequestInfo, request_info

KEY_HEADER = "x-api-key"
_BEARER = "bearer "
_MIN_RETRY_S, _MAX_RETRY_S = 1, 30
_WINDOW_S = 10.0
_DIGITS = re.compile(r"[0-9]+")
_MAX_DIGITS = 18
_DRAINED_BYTES = 256 * 2**10
"""Reading and dropping an unread body of this size is cheaper than a new connection.

A connection that is closed while its client still sends is reset, and the response may be lost.
"""


class ApiKeys:
    """Looks up API keys by their SHA-256 hashes; 256 random bits need no slow, salted hash."""

    def __init__(self, keys: Iterable[ApiKey]) -> None:
        self._names = [(bytes.fromhex(key.sha256), key.name) for key in keys]

    def authenticate(self, headers: Headers) -> str:
        """Return the name of the request's key; ``-`` where no keys are configured.

        Raises:
            Unauthorized: there is no key, or an unknown one.
        """
        if not self._names:
            return NONE
        key, found = _key_in(headers), None
        digest = hashlib.sha256(key.encode("latin-1")).digest()
        # Compare with all of them, each in constant time: the timing must not reveal a near miss.
        for known, name in self._names:
            if hmac.compare_digest(digest, known):
                found = name
        # The empty key is invalid even if the configuration holds its hash.
        if not key or found is None:
            raise Unauthorized("send an API key: authorization: Bearer KEY, or x-api-key: KEY")
        return found


def _key_in(headers: Headers) -> str:
    given = headers.get("authorization", "")
    if given[: len(_BEARER)].lower() == _BEARER:
        return given[len(_BEARER) :].strip()
    return headers.get(KEY_HEADER, "").strip()


class TokenBucket:
    """Token bucket: refills at ``per_minute`` up to ``burst``; a request takes one token.

    A request that turns out to cost more is charged afterwards and may leave a debt, which delays
    the next one: a batch is not uploaded only to be rejected for its cost.
    """

    def __init__(self, per_minute: int, burst: int, now: float) -> None:
        self.per_minute = per_minute
        self._per_second = per_minute / 60
        self._burst = burst
        self._tokens = float(burst)
        self._at = now

    def _refill(self, now: float) -> None:
        self._tokens = min(self._burst, self._tokens + (now - self._at) * self._per_second)
        self._at = now

    def take(self, now: float) -> bool:
        """Take a token if there is one."""
        self._refill(now)
        # The tolerance covers the rounding error of (now - at) * rate.
        if self._tokens < 1 - 1e-9:
            return False
        self._tokens -= 1
        return True

    def charge(self, tokens: int, now: float) -> None:
        """Take tokens, even if they are not available."""
        self._refill(now)
        self._tokens -= tokens

    def seconds_until(self, tokens: int) -> int:
        """Return the whole seconds until ``tokens`` are available."""
        return max(0, math.ceil((tokens - self._tokens) / self._per_second - 1e-9))

    def add_headers(self, headers: MutableHeaders) -> None:
        """Add ``RateLimit-Policy`` and ``RateLimit`` (draft-ietf-httpapi-ratelimit-headers)."""
        remaining, reset = max(0, math.floor(self._tokens + 1e-9)), self.seconds_until(self._burst)
        headers["ratelimit-policy"] = f'"requests";q={self.per_minute};w=60'
        headers["ratelimit"] = f'"requests";r={remaining};t={reset}'


class ThroughputEstimator:
    """Estimates from the completions of the last ten busy seconds when capacity is free again."""

    def __init__(self) -> None:
        self._completed: deque[float] = deque(maxlen=256)
        self._since = 0.0

    def start(self, now: float) -> None:
        """Restart after an idle period, which must not count in the throughput."""
        self._completed.clear()
        self._since = now

    def complete(self, now: float) -> None:
        """Record a completed request."""
        if len(self._completed) == self._completed.maxlen:
            self._since = self._completed[0]
        self._completed.append(now)

    def retry_after_s(self, requests: int, now: float) -> int:
        """Return the whole seconds, 1 to 30, in which ``requests`` will have completed."""
        while self._completed and self._completed[0] < now - _WINDOW_S:
            self._since = self._completed.popleft()
        if not requests:
            seconds = 0.0  # only bodies are being uploaded, which arrive or time out soon
        elif not self._completed:
            # None has completed yet: at best they need as long again as they have taken.
            seconds = now - self._since
        else:
            seconds = requests * (now - self._since) / len(self._completed)
        return min(_MAX_RETRY_S, max(_MIN_RETRY_S, math.ceil(seconds - 1e-6)))


class InFlightTracker:
    """Counts requests in flight and checks whether the service is draining.

    New requests are rejected while ``drain_file`` exists (None: never): an operator can create one
    without a credential or a port, and no client can.  As a context manager it counts one request.
    """

    def __init__(self, drain_file: Path | None = None) -> None:
        self._drain_file = drain_file
        self.in_flight = 0

    @property
    def draining(self) -> bool:
        """Whether new requests are rejected."""
        return self._drain_file is not None and self._drain_file.exists()

    def check(self) -> None:
        """Raise `ShuttingDown` if the service is draining."""
        if self.draining:
            raise ShuttingDown("the service is shutting down; retry later or on another server")

    def __enter__(self) -> None:
        self.in_flight += 1

    def __exit__(self, *exc: object) -> None:
        self.in_flight -= 1


class GateMiddleware:
    """Rejects requests without an API key, over the rate limit, over capacity, or too large.

    Checked in this order and before the body is read: an unknown key costs no rate, and a request
    over the rate takes no capacity.  Probes always pass.

    Only POST requests count for capacity; at most ``max_concurrent_requests`` are processed and at
    most ``max_arriving_requests`` bodies are uploaded at a time.  A request moves from the second
    count to the first when its body is complete, so slow uploads take no capacity from others.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        limits: Limits,
        security: SecuritySettings | None = None,
        tracker: InFlightTracker | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        security = security or SecuritySettings()
        self._app = app
        self._limits = limits
        self._clock = clock
        self._tracker = tracker or InFlightTracker()
        self._keys = ApiKeys(security.api_keys)
        # Callers without a key share one bucket.
        callers = [(NONE, security), *((key.name, key) for key in security.api_keys)]
        self._buckets = {
            name: TokenBucket(caller.requests_per_minute, caller.burst, clock())
            for name, caller in callers
            if caller.requests_per_minute is not None
        }
        self._processing = self._arriving = 0
        self._throughput = ThroughputEstimator()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        info = request_info(scope)
        if scope["type"] != "http" or info.route in PROBES:
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        size = _announced_bytes(headers)
        try:
            info.key = self._keys.authenticate(headers)
            bucket = self._buckets.get(info.key)
            if bucket is not None:
                send = _with_rate_headers(send, bucket)
                self._take_token(bucket, info)
            if scope["method"] == "POST":
                self._check_capacity()
            if size is not None and size > self._limits.max_body_bytes:
                raise too_large(self._limits)
        except SamServeError as error:
            # Keep the connection only if what is left of the body is small.
            close = size is None or size > _DRAINED_BYTES
            more = {"connection": "close"} if close else None
            response = error_response(count_rejection(error), info, headers=more)
            await response(scope, receive, send)
            return
        if scope["method"] == "POST":
            await self._admitted(scope, receive, send)
        else:
            await self._app(scope, receive, send)

    def _take_token(self, bucket: TokenBucket, info: RequestInfo) -> None:
        if not bucket.take(self._clock()):
            wait_s = max(1, bucket.seconds_until(1))
            error = RateLimited(
                f"more than {bucket.per_minute} requests a minute; retry in {wait_s} s"
            )
            error.retry_after_s = wait_s
            raise error
        info.charge = lambda requests: bucket.charge(requests, self._clock())

    def _check_capacity(self) -> None:
        limits = self._limits
        if (
            self._processing >= limits.max_concurrent_requests
            or self._arriving >= limits.max_arriving_requests
        ):
            raise self._overloaded()
        self._tracker.check()

    def _overloaded(self) -> Overloaded:
        error = Overloaded("too many concurrent requests; retry later")
        error.retry_after_s = self._throughput.retry_after_s(self._processing, self._clock())
        return error

    async def _admitted(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Run the request; count it as arriving until its body is complete, then as processing."""
        processing = False

        async def receive_body() -> Message:
            nonlocal processing
            message = await receive()
            complete = message["type"] == "http.request" and not message.get("more_body", False)
            if complete and not processing:
                if self._processing >= self._limits.max_concurrent_requests:
                    raise count_rejection(self._overloaded())
                processing = True
                self._start_processing()
            return message

        self._arriving += 1
        try:
            with self._tracker:
                await self._app(scope, receive_body, send)
        finally:
            if processing:
                self._processing -= 1
                self._throughput.complete(self._clock())
            else:
                self._arriving -= 1

    def _start_processing(self) -> None:
        if self._processing == 0:
            self._throughput.start(self._clock())
        self._arriving -= 1
        self._processing += 1


def too_large(limits: Limits) -> PayloadTooLarge:
    """Return the error for a body over the limit."""
    return PayloadTooLarge(f"the request body is larger than {limits.max_body_bytes} bytes")


def _announced_bytes(headers: Headers) -> int | None:
    """Return the body size that the headers announce; None if they do not."""
    if "transfer-encoding" in headers:
        return None
    text = headers.get("content-length", "0")
    if not _DIGITS.fullmatch(text):
        return None
    # Python refuses to parse numbers of thousands of digits.
    return int(text) if len(text) <= _MAX_DIGITS else sys.maxsize


def _with_rate_headers(send: Send, bucket: TokenBucket) -> Send:
    async def send_with_headers(message: Message) -> None:
        if message["type"] == "http.response.start":
            bucket.add_headers(MutableHeaders(scope=message))
        await send(message)

    return send_with_headers
