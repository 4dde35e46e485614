"""Section e: our batcher against bare ``@serve.batch`` under the same arrivals.

A pass takes the same time for any number of items, as on a GPU with free capacity; the engine is a
sleep in a thread, so that only the batching is compared.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from ray import serve

from serve_app.batching.batcher import Batcher
from serve_app.core.settings import Batching
from serve_tools.bench.ray_batching import batching_outside_replicas
from serve_tools.bench.rows import Row

OURS = "ours"
BARE = "bare @serve.batch"

Submit = Callable[[int], Awaitable[int]]


@dataclass(frozen=True)
class EvenArrivals:
    """Requests of one item each, evenly spaced.

    Attributes:
        every_s: from one request to the next.
        pass_s: time of one pass.
        most: items in a pass at most.
        wait_s: longest wait for a fuller batch.
    """

    requests: int = 60
    every_s: float = 0.025
    pass_s: float = 0.2
    most: int = 8
    wait_s: float = 0.01

    @property
    def case(self) -> str:
        return (
            f"{self.requests} requests, one each {self.every_s * 1e3:g} ms, "
            f"passes of {self.pass_s * 1e3:g} ms with {self.most} items at most"
        )


@dataclass
class Ran:
    """Results of one system."""

    latencies_s: list[float] = field(default_factory=list)
    batches: list[int] = field(default_factory=list)
    total_s: float = 0.0


def run(*, rounds: int = 2, arrivals: EvenArrivals | None = None) -> list[Row]:
    """Median latency of either system; they take turns."""
    load = arrivals or EvenArrivals()
    systems = {OURS: _ours, BARE: _bare}
    ran: dict[str, list[Ran]] = {name: [] for name in systems}
    with batching_outside_replicas():
        for _ in range(rounds):
            for name, make in systems.items():
                ran[name].append(asyncio.run(_drive(make, load)))
    return [_row(name, found, load) for name, found in ran.items()]


def _row(name: str, found: Sequence[Ran], load: EvenArrivals) -> Row:
    batches = [size for ran in found for size in ran.batches]
    return Row(
        case=load.case,
        system=name,
        ours=name == OURS,
        unit="ms, p50",
        rounds=tuple(float(np.median(ran.latencies_s)) * 1e3 for ran in found),
        floor=load.pass_s * 1e3,
        details={
            "total_s": float(np.median([ran.total_s for ran in found])),
            "mean_batch": float(np.mean(batches)),
            "p95_ms": float(np.median([np.quantile(r.latencies_s, 0.95) for r in found])) * 1e3,
        },
    )


async def _drive(make: Callable[[Ran, EvenArrivals], Submit], load: EvenArrivals) -> Ran:
    ran = Ran()
    submit = make(ran, load)
    begun = time.perf_counter()

    async def request(number: int) -> None:
        due = begun + number * load.every_s
        await asyncio.sleep(max(0.0, due - time.perf_counter()))
        sent = time.perf_counter()
        await submit(number)
        ran.latencies_s.append(time.perf_counter() - sent)

    await asyncio.gather(*(request(i) for i in range(load.requests)))
    ran.total_s = time.perf_counter() - begun
    return ran


def _engine(ran: Ran, load: EvenArrivals) -> Callable[[Sequence[int]], list[int]]:
    def run_pass(items: Sequence[int]) -> list[int]:
        ran.batches.append(len(items))
        time.sleep(load.pass_s)
        return list(items)

    return run_pass


def _ours(ran: Ran, load: EvenArrivals) -> Submit:
    batching = Batching(max_batch_size=load.most, batch_wait_timeout_s=load.wait_s)
    batcher: Batcher[int, int] = Batcher(_engine(ran, load), batching)
    return batcher


def _bare(ran: Ran, load: EvenArrivals) -> Submit:
    engine = _engine(ran, load)

    @serve.batch(max_batch_size=load.most, batch_wait_timeout_s=load.wait_s)
    async def run_batch(items: list[int]) -> list[int]:
        return await asyncio.to_thread(engine, items)

    submit: Submit = run_batch
    return submit


if __name__ == "__main__":
    for row in run():
        print(row.system, row.figure, row.details)
