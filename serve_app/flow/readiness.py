"""Whether the service is ready, for probes that call again and again while it works."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from serve_app.core.errors import Overloaded, ReplicaLost
from serve_app.core.single_flight import SingleFlight

log = logging.getLogger(__name__)

_TIMEOUT_S = 3.0
"""Less than a probe's timeout: HAProxy's is five seconds."""

_KEPT_S = 1.0


@dataclass(frozen=True, slots=True)
class ReadinessCheck:
    """One deployment that must have loaded.

    Attributes:
        loaded: calls it; the call waits in the queue of its work.
        runs: whether a replica of it is known to run, without a call.
    """

    loaded: Callable[[], Awaitable[bool]]
    runs: Callable[[], bool]


class Readiness:
    """Runs all checks, at most once a second.

    A deployment at capacity does not respond in time.  So, once it has responded, it counts as
    loaded while a replica of it runs: a busy service must not be taken out of a load balancer.
    """

    def __init__(
        self, checks: Sequence[ReadinessCheck], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._checks = checks
        self._clock = clock
        self._loaded = [False] * len(checks)
        self._checking: SingleFlight[bool] = SingleFlight()
        self._result, self._kept_until = False, -math.inf

    async def __call__(self) -> bool:
        """Whether all checked deployments have loaded and run."""
        if self._clock() < self._kept_until:
            return self._result
        return await self._checking.run("", self._check)

    async def _check(self) -> bool:
        self._result = all(await asyncio.gather(*map(self._ready, range(len(self._checks)))))
        self._kept_until = self._clock() + _KEPT_S
        return self._result

    async def _ready(self, index: int) -> bool:
        check = self._checks[index]
        try:
            async with asyncio.timeout(_TIMEOUT_S):
                self._loaded[index] = await check.loaded()
        except Overloaded:
            self._loaded[index] = True  # only a loaded one can be at capacity
        except (TimeoutError, ReplicaLost):
            # No news; and a replica that runs has loaded.
            log.debug("a deployment did not respond to the readiness check")
        except Exception:
            # Whatever is wrong with it, it is not ready.
            log.debug("not ready", exc_info=True)
            self._loaded[index] = False
        return self._loaded[index] and check.runs()
