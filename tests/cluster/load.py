"""An open-loop load on the stand-ins, and what replicas did meanwhile."""

from __future__ import annotations

import statistics
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass, field

from ray import serve

from .ray_cluster import RayCluster

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
    """A run: each request as (sent at, variant, seconds or None if it failed), and replicas.

    Attributes:
        began: when each phase did.
    """

    started: float = field(default_factory=time.monotonic)
    requests: list[tuple[float, str, float | None]] = field(default_factory=list)
    samples: list[Sample] = field(default_factory=list)
    began: list[float] = field(default_factory=list)

    def p50_s(self, variant: str, since: float, until: float) -> float | None:
        """Median time of the requests sent in a span; those that failed count as endless."""
        took = [
            float("inf") if s is None else s
            for at, name, s in self.requests
            if name == variant and since <= at < until
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
    """Send what is due when it is due, whatever has been answered; watch the replicas."""
    handle = serve.get_app_handle(app)
    record = Record()
    stop = threading.Event()
    watcher = threading.Thread(target=_watch, args=(cluster, app, record, stop.wait), daemon=True)
    watcher.start()
    pool = ThreadPoolExecutor(max_workers=256, thread_name_prefix="caller")

    def ask(at: float, variant: str) -> None:
        took = None
        try:
            handle.ask.remote(variant).result(timeout_s=300)
            took = time.monotonic() - record.started - at
        except Exception:  # noqa: S110 - a request that failed is one without a time
            pass
        record.requests.append((at, variant, took))

    try:
        waiting = []
        begin = 0.0
        for phase in phases:
            record.began.append(begin)
            for after, variant in phase.due():
                if phase.until is not None and phase.until(record):
                    break
                stop.wait(max(0.0, record.started + begin + after - time.monotonic()))
                waiting.append(pool.submit(ask, begin + after, variant))
            if phase.until is None:
                begin += phase.seconds
                stop.wait(max(0.0, record.started + begin - time.monotonic()))
            else:
                begin = time.monotonic() - record.started
        wait(waiting, grace_s)
    finally:
        stop.set()
        watcher.join(10.0)
        pool.shutdown(wait=False, cancel_futures=True)
    return record


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
