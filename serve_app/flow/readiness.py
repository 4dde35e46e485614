"""Whether the service can answer: asked by probes, again and again, beside its work."""

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
"""Less than a probe waits: the front's gives up after five seconds."""

_KEPT_S = 1.0


@dataclass(frozen=True, slots=True)
class Part:
    """What must have loaded.

    Attributes:
        ask: whether it has; the question waits where the part's work does.
        runs: whether a replica of it runs, as far as is known without asking.
    """

    ask: Callable[[], Awaitable[bool]]
    runs: Callable[[], bool]


class Readiness:
    """Asks all parts, once for all who want to know within a second.

    A part that is full does not answer in time.  So, once it has answered, it counts as loaded as
    long as a replica of it runs: a service that is busy must not lose its place at a balancer.
    """

    def __init__(self, parts: Sequence[Part], clock: Callable[[], float] = time.monotonic) -> None:
        self._parts = parts
        self._clock = clock
        self._loaded = [False] * len(parts)
        self._asking: SingleFlight[bool] = SingleFlight()
        self._answer, self._kept_until = False, -math.inf

    async def __call__(self) -> bool:
        """Whether all parts have loaded and run."""
        if self._clock() < self._kept_until:
            return self._answer
        return await self._asking.run("", self._ask)

    async def _ask(self) -> bool:
        self._answer = all(await asyncio.gather(*map(self._ready, range(len(self._parts)))))
        self._kept_until = self._clock() + _KEPT_S
        return self._answer

    async def _ready(self, index: int) -> bool:
        part = self._parts[index]
        try:
            async with asyncio.timeout(_TIMEOUT_S):
                self._loaded[index] = await part.ask()
        except Overloaded:
            self._loaded[index] = True  # so much work is brought to what is there alone
        except (TimeoutError, ReplicaLost):
            # Nothing new of it; and whatever replica runs has loaded.
            log.debug("a part did not say whether it is ready")
        except Exception:
            # Whatever is wrong with a part, the answer to this question is "not ready".
            log.debug("not ready", exc_info=True)
            self._loaded[index] = False
        return self._loaded[index] and part.runs()
