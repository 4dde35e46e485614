"""Item 5: ten times more requests than can be answered.

One ingress, two encoders of 100 ms an image, one image in a pass: so the encoders are what is
short, and their rate is known.  Each request uploads a new image of 147 KB.
"""

from __future__ import annotations

import asyncio
import threading
import time

from serve_tools.bench.load import Outcome

from ..fakes.graph import graph
from .client import Client, median, quantile
from .processes import MIB, pss_bytes
from .questions import LARGE, new_image
from .report import Report
from .service import Service, serving

ITEM = "5 overload"
ENCODE_MS, DECODE_MS = 100.0, 5.0
ENCODERS = 2
ADMITTED = 16
"""Requests in work in the ingress at once (`Limits.max_concurrent_requests`).

A request is in work from when its body has arrived; bodies on their way are counted apart
(`max_arriving_requests`), and whose body arrives when all places are taken is refused like who
comes then: nobody waits for a place.
"""
CACHE = {"image_bytes": 8 * MIB}
"""Full before the overload begins: uploads that are kept are no growth."""
TIMES = 10
WINDOW_S = 3.0


class MemoryWatch:
    """The greatest sum of the processes' memory, looked at twice a second."""

    def __init__(self, pids: list[int]) -> None:
        self._pids = pids
        self.before = self.greatest = self._now()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def _now(self) -> int:
        return sum(map(pss_bytes, self._pids))

    def _look(self) -> None:
        while not self._stop.wait(0.5):
            self.greatest = max(self.greatest, self._now())

    def __enter__(self) -> MemoryWatch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    @property
    def grown_mib(self) -> float:
        return (self.greatest - self.before) / MIB


def run(report: Report, quick: bool) -> None:
    """Measure the capacity, overload, and see it recover."""
    times = {"encode_ms": ENCODE_MS, "decode_ms": DECODE_MS}
    limits = {"max_concurrent_requests": ADMITTED}
    args = graph(encoder_batch=1, fakes=times, cache=CACHE, limits=limits)
    with serving(args) as service:
        asyncio.run(_run(report, service, quick))


async def _run(report: Report, service: Service, quick: bool) -> None:
    async with Client(service.url) as client:
        await client.closed_loop(lambda: new_image(LARGE), 8, 3.0)  # connections, caches, code
        capacity = await client.closed_loop(lambda: new_image(LARGE), 8, 8.0 if quick else 20.0)
        usual = await client.open_loop(lambda: new_image(LARGE), capacity / 2, 10.0)
    possible = ENCODERS / ENCODE_MS * 1e3
    report.at_least(ITEM, f"capacity C, requests/s, of {possible:g}", capacity, 0.7 * possible)
    seconds = 15.0 if quick else 60.0
    pids = {"ingress": service.pids("ingress"), "proxies": service.proxies()}
    watches = [MemoryWatch(found) for found in pids.values()]
    async with Client(service.url) as client:
        with watches[0], watches[1]:
            began = time.monotonic()
            outcomes = await client.open_loop(lambda: new_image(LARGE), capacity * TIMES, seconds)
        _judge(report, outcomes, capacity, began, seconds)
        ledger = client.ledger
    for name, watch in zip(pids, watches, strict=True):
        report.at_most(ITEM, f"memory of {name}, growth", watch.grown_mib, 64, "MiB")
    report.at_most(ITEM, "ids without exactly one outcome", ledger.unanswered, 0)
    await _recovery(report, service, capacity, median(o.took_ms for o in usual))
    report.note(f"\nOverload, ledger:\n\n{ledger.table()}\n")


def _judge(
    report: Report, outcomes: list[Outcome], capacity: float, began: float, seconds: float
) -> None:
    good = [o for o in outcomes if o.status == 200]
    refused = [o for o in outcomes if o.status in (429, 503)]
    others = len(outcomes) - len(good) - len(refused)
    report.add(ITEM, "requests sent", len(outcomes), f"{TIMES} C for {seconds:g} s")
    report.at_most(ITEM, "responses other than 200, 429, 503", others, 0)
    report.at_least(ITEM, "rejections", len(refused), len(outcomes) / 2)
    without = sum(o.retry_after is None for o in refused)
    report.at_most(ITEM, "rejections without Retry-After", without, 0)
    in_time = sum(o.done_s <= began + seconds for o in good)
    report.at_least(ITEM, "goodput / C", in_time / seconds / capacity, 0.7)
    # By Little's law; else the queue below is not what the service has.
    working = sum(o.took_ms for o in good) / 1e3 / seconds
    told = f"in flight, mean, of {ADMITTED}"
    report.add(ITEM, told, working, "± 25 %", abs(working / ADMITTED - 1) <= 0.25)
    # Of those in work some are being served; the others wait before one, in two rows.
    queue = (ADMITTED - ENCODERS) / ENCODERS
    bound = 2 * (queue + 1) * (ENCODE_MS + DECODE_MS)
    report.at_most(ITEM, "accepted, p99", quantile((o.took_ms for o in good), 0.99), bound, "ms")
    report.add(ITEM, "accepted, p50", f"{median(o.took_ms for o in good):.0f} ms")
    report.at_most(ITEM, "rejected, p99", quantile((o.took_ms for o in refused), 0.99), 250, "ms")
    report.add(ITEM, "rejected, p50", f"{median(o.took_ms for o in refused):.0f} ms")
    lag = quantile((o.lag_ms for o in outcomes), 0.99)
    report.at_most(ITEM, "the generator's own lag, p99 (contained above)", lag, 100, "ms")


async def _recovery(report: Report, service: Service, capacity: float, usual_ms: float) -> None:
    """Half load, from the end of the overload on."""
    ended = time.monotonic()
    async with Client(service.url) as client:
        after = await client.open_loop(lambda: new_image(LARGE), capacity / 2, 20.0)
    back = None
    for step in range(int(20 / WINDOW_S)):
        start = ended + step * WINDOW_S
        window = [o for o in after if start <= o.due_s < start + WINDOW_S]
        fine = all(o.status == 200 for o in window)
        if fine and median(o.took_ms for o in window) <= 1.2 * usual_ms:
            back = step * WINDOW_S if back is None else back
        else:
            back = None
    report.add(ITEM, "p50 at half load before", f"{usual_ms:.0f} ms")
    report.at_most(
        ITEM, "p50 within 20 % again, after", float("nan") if back is None else back, 15, "s"
    )
