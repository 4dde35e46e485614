"""The load generator: closed and open loop, with the outcome of every request.

Closed loop: concurrent callers, each sending its next request after the last response.  Open loop:
requests are sent when they are due, whatever is in flight; latency counts from the due time.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

_FAILURE_PAUSE_S = 0.05
"""A service that rejects immediately must not be called in a tight loop."""

Clock = Callable[[], float]


class RequestFailed(Exception):
    """A service responded with an error or an unexpected result, or not at all.

    Attributes:
        status: of the response; 0 without one.
    """

    def __init__(self, reason: str, status: int = 0) -> None:
        super().__init__(reason)
        self.status = status


@dataclass(frozen=True)
class Outcome:
    """The outcome of one request.

    Attributes:
        kind: names the request in reports.
        key: requests of one key must have the same response.
        due_s, sent_s, done_s: readings of the generator's clock.
        status: of the response; 0 without one.
        code: why it failed.
        digest: of what must not differ between responses; empty unless successful.
        stages_ms: milliseconds by stage that the service reported.
    """

    request_id: str
    kind: str
    key: str
    due_s: float
    sent_s: float
    done_s: float
    status: int
    code: str = ""
    retry_after: str | None = None
    digest: str = ""
    stages_ms: Mapping[str, float] = field(default_factory=dict)

    @property
    def ok(self) -> bool:
        return self.status == 200

    @property
    def took_ms(self) -> float:
        """Latency from the due time."""
        return (self.done_s - self.due_s) * 1e3

    @property
    def lag_ms(self) -> float:
        """How late the generator was."""
        return (self.sent_s - self.due_s) * 1e3


@dataclass(frozen=True)
class Window:
    """Results of one load; ``seconds`` are those from the start to the last response."""

    outcomes: Sequence[Outcome] = ()
    seconds: float = 0.0

    @cached_property
    def latencies_ms(self) -> list[float]:
        """Of successful requests."""
        return [outcome.took_ms for outcome in self.outcomes if outcome.ok]

    @property
    def failures(self) -> dict[str, int]:
        """Number of failed requests by reason."""
        return Counter(outcome.code for outcome in self.outcomes if not outcome.ok)

    @cached_property
    def stages_ms(self) -> dict[str, float]:
        """Sums by stage over all responses."""
        sums: defaultdict[str, float] = defaultdict(float)
        for outcome in self.outcomes:
            for name, ms in outcome.stages_ms.items():
                sums[name] += ms
        return sums

    @property
    def requests_per_s(self) -> float:
        """Successful requests."""
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


Stages = Callable[[int], Awaitable[Mapping[str, float]]]
"""Sends request number n and returns milliseconds by stage, or raises `RequestFailed`."""

Send = Callable[[int, float], Awaitable[Outcome]]
"""Sends request number n, due at a time of the clock."""


def recorded(send: Stages, clock: Clock = time.perf_counter) -> Send:
    """Record the outcomes of a function that returns stages."""

    async def one(number: int, due_s: float) -> Outcome:
        request_id, sent_s = uuid.uuid4().hex, clock()
        status, code, stages_ms = 200, "", {}
        try:
            stages_ms = dict(await send(number))
        except RequestFailed as exc:
            status, code = exc.status, str(exc)
        return Outcome(
            request_id, "", "", due_s, sent_s, clock(), status, code, stages_ms=stages_ms
        )

    return one


async def closed_loop(
    send: Send,
    callers: int,
    seconds: float,
    *,
    least: int = 1,
    most: int | None = None,
    clock: Clock = time.perf_counter,
) -> Window:
    """Send for some seconds, then wait for requests in flight.

    Args:
        least: minimum number of requests, however long they take.
        most: maximum number of requests.
        clock: the one that ``send`` records with.
    """
    outcomes: list[Outcome] = []
    started = clock()
    sent = 0

    async def caller() -> None:
        nonlocal sent
        while (most is None or sent < most) and (sent < least or clock() - started < seconds):
            number, sent = sent, sent + 1
            outcome = await send(number, clock())
            outcomes.append(outcome)
            if not outcome.ok:
                await asyncio.sleep(_FAILURE_PAUSE_S)

    await asyncio.gather(*(caller() for _ in range(callers)))
    return Window(outcomes, clock() - started)


async def open_loop(
    send: Send,
    due_s: Iterable[float],
    *,
    grace_s: float | None = None,
    clock: Clock = time.perf_counter,
) -> Window:
    """Send each request when it is due, then wait for those in flight.

    Args:
        due_s: seconds after the start, ascending; each is drawn once the one before was sent.
        grace_s: requests that take longer after the last one was sent are cancelled and have
            no outcome; None waits for all.
        clock: the one that ``send`` records with.
    """
    started = clock()
    tasks: list[asyncio.Task[Outcome]] = []
    try:
        for number, after in enumerate(due_s):
            await asyncio.sleep(max(0.0, started + after - clock()))
            tasks.append(asyncio.ensure_future(send(number, started + after)))
        if tasks:
            await asyncio.wait(tasks, timeout=grace_s)
    finally:
        late = [task for task in tasks if not task.done()]
        for task in late:
            task.cancel()
    outcomes = [task.result() for task in tasks if task not in late]
    return Window(outcomes, clock() - started)


def evenly(rate: float, seconds: float) -> list[float]:
    """Due times of ``rate`` requests a second."""
    return [number / rate for number in range(int(rate * seconds))]
