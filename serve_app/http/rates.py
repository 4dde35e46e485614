"""Requests a minute of each key: a token bucket for each, in each ingress replica."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve_app.core.errors import RateLimited
from serve_app.core.settings import Rate, SecuritySettings
from serve_app.http.refusals import refuse
from serve_app.http.tally import NONE, PROBES, tally_of


class TokenBucket:
    """Fills with so many tokens a minute, up to ``burst``; a request takes one.

    What turns out to cost more is taken afterwards and may leave a debt, which must be paid off
    before the next request: nobody uploads a batch to hear that it costs too much.
    """

    def __init__(self, per_minute: int, burst: int, now: float) -> None:
        self.per_minute = per_minute
        self._per_second = per_minute / 60
        self._burst = burst
        self._tokens = float(burst)
        self._at = now

    def _fill(self, now: float) -> None:
        self._tokens = min(self._burst, self._tokens + (now - self._at) * self._per_second)
        self._at = now

    def take(self, now: float) -> bool:
        """Take a token, if there is one."""
        self._fill(now)
        # A billionth: what (now - at) x rate is short of a whole token by rounding.
        if self._tokens < 1 - 1e-9:
            return False
        self._tokens -= 1
        return True

    def charge(self, tokens: int, now: float) -> None:
        """Take tokens, whether they are there or not."""
        self._fill(now)
        self._tokens -= tokens

    @property
    def left(self) -> int:
        """Requests that would pass now."""
        return max(0, math.floor(self._tokens + 1e-9))

    def seconds_until(self, tokens: int) -> int:
        """Whole seconds until there are so many."""
        return max(0, math.ceil((tokens - self._tokens) / self._per_second - 1e-9))

    @property
    def seconds_until_full(self) -> int:
        return self.seconds_until(self._burst)


class Rates:
    """Refuses what is beyond a key's rate; probes always pass.

    Callers without a key share one bucket.  Each image of a batch counts as a request, from when
    the batch is read.  Answers tell the state in the fields of the IETF's draft
    (draft-ietf-httpapi-ratelimit-headers): ``RateLimit-Policy`` and ``RateLimit``.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        security: SecuritySettings,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._app = app
        self._clock = clock
        now = clock()
        callers: list[tuple[str, Rate]] = [(NONE, security)]
        callers += [(key.name, key) for key in security.api_keys]
        self._buckets = {
            name: TokenBucket(caller.requests_per_minute, caller.burst, now)
            for name, caller in callers
            if caller.requests_per_minute is not None
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        tally = tally_of(scope)
        bucket = self._buckets.get(tally.key)
        if bucket is None or tally.route in PROBES:
            await self._app(scope, receive, send)
            return

        async def told(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers["ratelimit-policy"] = f'"requests";q={bucket.per_minute};w=60'
                headers["ratelimit"] = f'"requests";r={bucket.left};t={bucket.seconds_until_full}'
            await send(message)

        if bucket.take(self._clock()):
            tally.charge = lambda more: bucket.charge(more, self._clock())
            await self._app(scope, receive, told)
            return
        wait_s = max(1, bucket.seconds_until(1))
        error = RateLimited(
            f"more than {bucket.per_minute} requests a minute; try again in {wait_s} s"
        )
        error.retry_after_s = wait_s
        await refuse(error, "rate", scope, receive, told)
