"""A closed-loop load: concurrent callers, each sending its next request after the last response."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field

import numpy as np

Send = Callable[[int], Awaitable[Mapping[str, float]]]
"""Sends request number n; returns the milliseconds by stage that the service reported."""


class RequestFailed(Exception):
    """A service responded with an error or an unexpected result, or not at all."""


@dataclass
class Window:
    """Results of one load window.

    Attributes:
        seconds: from the first request to the last response.
        latencies_ms: of successful requests.
        stages_ms: sums by stage over all responses, as the services reported them.
        failures: number of failed requests by reason.
    """

    seconds: float = 0.0
    latencies_ms: list[float] = field(default_factory=list)
    stages_ms: dict[str, float] = field(default_factory=dict)
    failures: dict[str, int] = field(default_factory=dict)

    @property
    def requests_per_s(self) -> float:
        return len(self.latencies_ms) / self.seconds if self.seconds else 0.0

    def quantile_ms(self, share: float) -> float:
        return float(np.quantile(self.latencies_ms, share)) if self.latencies_ms else float("inf")

    def longest_stages(self, most: int = 3, least: float = 0.05) -> str:
        """The longest stages as shares of the mean latency."""
        total = sum(self.latencies_ms)
        stages = sorted(self.stages_ms.items(), key=lambda item: -item[1])
        return ", ".join(
            f"{name} {ms / total:.0%}" for name, ms in stages[:most] if ms >= least * total
        )


async def drive(
    send: Send,
    concurrency: int,
    seconds: float,
    *,
    least: int = 1,
    most: int | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> Window:
    """Send for some seconds, then wait for requests in flight.

    Args:
        send: raises `RequestFailed` for a failed request.
        least: minimum number of requests, however long they take.
        most: maximum number of requests.
    """
    window = Window()
    started = clock()
    sent = 0

    async def caller() -> None:
        nonlocal sent
        while (most is None or sent < most) and (sent < least or clock() - started < seconds):
            number, sent = sent, sent + 1
            begin = clock()
            try:
                stages = await send(number)
            except RequestFailed as exc:
                window.failures[str(exc)] = window.failures.get(str(exc), 0) + 1
                # A service that rejects immediately must not be called in a tight loop.
                await asyncio.sleep(0.05)
                continue
            window.latencies_ms.append((clock() - begin) * 1e3)
            for name, ms in stages.items():
                window.stages_ms[name] = window.stages_ms.get(name, 0.0) + ms

    await asyncio.gather(*(caller() for _ in range(concurrency)))
    window.seconds = clock() - started
    return window
