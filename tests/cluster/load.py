"""Phases of open-loop load on a graph of fakes, and what its replicas did meanwhile."""

from __future__ import annotations

import asyncio
import statistics
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from ray import serve

from serve_tools.bench.load import Outcome, RequestFailed, open_loop, recorded

from .ray_cluster import RayCluster

_TIMEOUT_S = 300.0
WATCH_S = 0.5
WINDOW_S = 2.0


@dataclass(frozen=True)
class Sample:
    """Replicas by deployment at one moment: asked for, and running."""

    at: float
    target: Mapping[str, int]
    running: Mapping[str, int]


@dataclass
class Record:
    """A run.

    Attributes:
        requests: of kinds that are the variants' names.
        samples: of the replicas.
        began: when each phase did, in seconds after ``started``.
    """

    started: float = field(default_factory=time.monotonic)
    requests: Sequence[Outcome] = ()
    samples: list[Sample] = field(default_factory=list)
    began: list[float] = field(default_factory=list)

    def p50_s(self, variant: str, since: float, until: float) -> float | None:
        """Median time of the requests sent in a span; those that failed count as endless."""
        took = [
            outcome.took_ms / 1e3 if outcome.ok else float("inf")
            for outcome in self.requests
            if outcome.kind == variant and since <= outcome.due_s - self.started < until
        ]
        return statistics.median(took) if took else None

    def last_change(self, since: float, key: str = "target") -> float | None:
        """Seconds from ``since`` to the last sample that differs from the one before it."""
        last = None
        for before, after in zip(self.samples, self.samples[1:], strict=False):
            if after.at >= since and getattr(before, key) != getattr(after, key):
                last = after.at - since
        return last

    def changes(self, since: float, until: float = float("inf")) -> int:
        """Replicas added plus replicas removed, as asked for."""
        total = 0
        for before, after in zip(self.samples, self.samples[1:], strict=False):
            if since <= after.at < until:
                names = before.target.keys() | after.target.keys()
                total += sum(abs(after.target.get(n, 0) - before.target.get(n, 0)) for n in names)
        return total

    def back_at(self, variant: str, goal_s: float, since: float, until: float) -> float | None:
        """Seconds from ``since`` after which the median of each window kept the goal."""
        back, at = None, since
        while at + WINDOW_S <= until:
            p50 = self.p50_s(variant, at, at + WINDOW_S)
            if p50 is None or p50 > goal_s:
                back = None
            elif back is None:
                back = at - since
            at += WINDOW_S / 4
        return back


@dataclass(frozen=True)
class Phase:
    """Requests a second by variant, for some seconds.

    Attributes:
        until: it ends as soon as this is so of what was recorded by then; None: not before.
    """

    seconds: float
    rates: Mapping[str, float]
    until: Callable[[Record], bool] | None = None

    def due(self) -> list[tuple[float, str]]:
        """Times and variants of all requests, evenly spaced."""
        return sorted(
            ((i + 0.5) / rate, variant)
            for variant, rate in self.rates.items()
            if rate > 0
            for i in range(int(self.seconds * rate))
        )


def drive(cluster: RayCluster, app: str, phases: list[Phase], grace_s: float = 30.0) -> Record:
    """Send each request when it is due, whatever is in flight; watch the replicas meanwhile."""
    record = Record()
    stop = threading.Event()
    watcher = threading.Thread(target=_watch, args=(cluster, app, record, stop.wait), daemon=True)
    watcher.start()
    try:
        asyncio.run(_send_all(serve.get_app_handle(app), phases, record, grace_s))
    finally:
        stop.set()
        watcher.join(10.0)
    return record


async def _send_all(handle: Any, phases: list[Phase], record: Record, grace_s: float) -> None:
    variants: list[str] = []

    def due() -> Iterator[float]:
        begin = 0.0
        for phase in phases:
            record.began.append(begin)
            for after, variant in phase.due():
                if phase.until is not None and phase.until(record):
                    break
                variants.append(variant)
                yield begin + after
            if phase.until is None:
                begin += phase.seconds
            else:
                begin = time.monotonic() - record.started

    async def send(number: int) -> Mapping[str, float]:
        try:
            await asyncio.wait_for(handle.ask.remote(variants[number]), _TIMEOUT_S)
        except Exception as exc:
            raise RequestFailed(type(exc).__name__) from exc
        return {}

    one = recorded(send, time.monotonic)

    async def named(number: int, due_s: float) -> Outcome:
        return replace(await one(number, due_s), kind=variants[number])

    window = await open_loop(named, due(), grace_s=grace_s, clock=time.monotonic)
    record.requests = window.outcomes


def _watch(
    cluster: RayCluster, app: str, record: Record, wait_for: Callable[[float], bool]
) -> None:
    while not wait_for(WATCH_S):
        deployments = cluster.applications()[app]["deployments"]
        record.samples.append(
            Sample(
                time.monotonic() - record.started,
                {name: told["target_num_replicas"] for name, told in deployments.items()},
                {
                    name: sum(replica["state"] == "RUNNING" for replica in told["replicas"])
                    for name, told in deployments.items()
                },
            )
        )
