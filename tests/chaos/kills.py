"""Item 6: ``kill -9`` of replicas at half load, and the ledger of what became of each request.

Two replicas of each role.  Child replicas (encoder, decoder, proposals, text) may cost nothing.
Of the ingress there are two as well, with a real Redis between them; the client retries.
"""

from __future__ import annotations

import asyncio
import itertools
import random
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from serve_tools.bench.load import Outcome

from ..cluster.ray_cluster import wait_until
from ..fakes.graph import graph
from ..faults.redis_server import RedisServer
from .client import Client, Ledger
from .questions import Ask, Mix
from .report import Report
from .service import Service, all_running, kill_and_wait, serving

ITEM = "6 kills"
CHILDREN = ("fast-encoder", "fast-decoder", "proposals", "text")
TIMES = {"encode_ms": 200.0, "decode_ms": 60.0, "propose_ms": 100.0, "score_ms": 200.0}
"""So long that most kills hit somebody's work."""
T = TypeVar("T")
PATIENCE_S = 180.0
RETRIES, PAUSE_S = 5, 0.5
"""Of the client, when an ingress died."""


BUSY = 6
"""Requests under way when a replica is killed: so that it hits somebody."""


@dataclass(frozen=True)
class Kill:
    """One ``kill -9``.

    Attributes:
        at_s, gone_s: instants of ``time.monotonic`` before it and when the process was gone.
        back_s: seconds from then until all replicas ran, if that was waited for.
    """

    role: str
    at_s: float
    gone_s: float
    back_s: float

    def within(self, outcome: Outcome) -> bool:
        """Whether a request was under way: sent before the process was gone, ended after."""
        return outcome.sent_s <= self.gone_s and outcome.done_s >= self.at_s


def run(report: Report, quick: bool) -> None:
    """Kills of children, then kills of the ingress."""
    with (
        tempfile.TemporaryDirectory() as folder,
        RedisServer(Path(folder)) as redis,
        serving(settings(redis.url)) as service,
    ):
        asyncio.run(_children(report, service, 4 if quick else 20))
        asyncio.run(_ingress(report, service, 3 if quick else 5))
        note_causes(report, service)


def settings(redis_url: str) -> dict[str, Any]:
    """Two of everything."""
    found: dict[str, Any] = graph(ingresses=2, fakes=TIMES, cache={"redis_url": redis_url})
    return found


async def half_load(client: Client, mix: Callable[[], Ask]) -> float:
    """Half of what the service can do, in requests a second."""
    await client.closed_loop(mix, 8, 3.0)
    capacity = await client.closed_loop(mix, 24, 8.0)
    if not capacity:
        raise RuntimeError(f"nothing is answered:\n{client.ledger.table()}")
    return capacity / 2


async def killing(
    service: Service,
    roles: Sequence[str],
    times: int,
    together: bool = False,
    ledger: Ledger | None = None,
) -> list[Kill]:
    """Kill a replica of each role in turn, whenever all are back, or at short intervals.

    Args:
        ledger: waits until it has `BUSY` requests under way before each kill.
    """
    counts = dict.fromkeys((*CHILDREN, "ingress"), 2)
    ready = all_running(service, counts)
    rng, kills = random.Random(7), list[Kill]()
    for turn, role in enumerate(itertools.islice(itertools.cycle(roles), times), 1):
        pids = await asyncio.to_thread(service.pids, role)
        if ledger is not None:
            await asyncio.to_thread(wait_until, partial(_busy, ledger), "there is work", PATIENCE_S)
        at = time.monotonic()
        await asyncio.to_thread(kill_and_wait, rng.choice(pids))
        gone = time.monotonic()
        if not together or turn == times:
            await asyncio.to_thread(wait_until, ready, "what was killed is replaced", PATIENCE_S)
        kills.append(Kill(role, at, gone, time.monotonic() - gone))
        await asyncio.sleep(rng.uniform(0.2, 0.6) if together else rng.uniform(1.0, 2.0))
    return kills


def _busy(ledger: Ledger) -> bool:
    return len(ledger.sent) - len(ledger.outcomes) >= BUSY


async def under_load(
    client: Client, mix: Callable[[], Ask], rate: float, work: asyncio.Task[T]
) -> T:
    """Open loop until the work is done."""
    asks: list[asyncio.Task[Outcome]] = []
    began = time.monotonic()
    while not work.done():
        due = began + len(asks) / rate
        await asyncio.sleep(max(0.0, due - time.monotonic()))
        asks.append(asyncio.create_task(client.ask(mix(), due)))
    await asyncio.gather(*asks)
    return await work


async def under_calls(
    client: Client, mix: Callable[[], Ask], callers: int, work: asyncio.Task[T]
) -> T:
    """Closed loop until the work is done: a slow machine has no more to do at once than another."""

    async def call() -> None:
        while not work.done():
            await client.ask(mix())

    await asyncio.gather(*(call() for _ in range(callers)))
    return await work


async def ask_until_answered(client: Client, ask: Ask) -> Outcome:
    """As a client would: again after a pause, some times at most."""
    outcome = await client.ask(ask)
    for _ in range(RETRIES):
        if outcome.status == 200:
            break
        await asyncio.sleep(PAUSE_S)
        outcome = await client.ask(ask)
    return outcome


async def _children(report: Report, service: Service, times: int) -> None:
    mix = Mix()
    async with Client(service.url) as client:
        rate = await half_load(client, mix)
        client.ledger = Ledger()
        work = asyncio.create_task(killing(service, CHILDREN, times, ledger=client.ledger))
        kills = await under_load(client, mix, rate, work)
        ledger = client.ledger
        await client.open_loop(mix, rate, 5.0)
    outcomes = ledger.all()
    report.add(ITEM, "kills of child replicas", len(kills), "", None)
    report.add(ITEM, "requests during the test, at half load", len(outcomes), f"{rate:.1f}/s")
    report.at_most(ITEM, "ids without exactly one outcome", ledger.unanswered, 0)
    lost = [o for o in outcomes if o.status != 200]
    report.at_most(ITEM, "accepted requests lost to them", len(lost), 0)
    report.at_most(ITEM, "requests with two different results", ledger.contradictions(), 0)
    again = await asyncio.to_thread(made_again, service)
    # Without any the kills hit nobody.
    report.at_least(ITEM, "calls retried by the graph, successful", again.get("ok", 0.0), 1)
    worst = max(k.back_s for k in kills)
    report.add(ITEM, "slowest replacement of a replica", f"{worst:.1f} s")
    told = [
        f"{_ago(o, kills)}: {o.kind} {o.status} {o.code} after {o.took_ms:.0f} ms" for o in lost
    ]
    report.note(f"\nKills of children, ledger:\n\n{ledger.table()}\n")
    if told:
        report.note("Lost:\n" + "\n".join(f"- {line}" for line in told[:30]))


def _ago(outcome: Outcome, kills: Sequence[Kill]) -> str:
    """The last kill before a request ended."""
    last = [k for k in kills if k.at_s <= outcome.done_s]
    if not last:
        return "before any kill"
    return f"{outcome.done_s - last[-1].at_s:.2f} s after a kill of {last[-1].role}"


async def _ingress(report: Report, service: Service, times: int) -> None:
    mix = Mix()
    first = Ledger()
    again: list[tuple[Outcome, Outcome, int]] = []
    async with Client(service.url) as client, Client(service.url) as other:
        rate = await half_load(client, mix)
        client.ledger = first

        async def with_retry(ask: Ask, due: float) -> None:
            outcome = await client.ask(ask, due)
            tries = 0
            last = outcome
            while last.status != 200 and tries < RETRIES:
                await asyncio.sleep(PAUSE_S)
                tries += 1
                last = await other.ask(ask)
            if tries:
                again.append((outcome, last, tries))

        work = asyncio.create_task(killing(service, ["ingress"], times, ledger=first))
        asks: list[asyncio.Task[None]] = []
        began = time.monotonic()
        while not work.done():
            due = began + len(asks) / rate
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            asks.append(asyncio.create_task(with_retry(mix(), due)))
        await asyncio.gather(*asks)
        kills = await work
        # What was answered by retry is asked once more, in peace.
        for _, last, _ in again:
            other.ledger.outcomes.setdefault(last.request_id, last)
        same = other.ledger.contradictions() + _differ(first, other.ledger)
    outcomes = first.all()
    failed = [o for o in outcomes if o.status != 200]
    report.add(ITEM, "kills of the ingress", len(kills))
    report.add(ITEM, "requests during the test, at half load", len(outcomes), f"{rate:.1f}/s")
    judge_ingress(report, outcomes, kills)
    report.at_most(ITEM, "ids without exactly one outcome", first.unanswered, 0)
    unmet = sum(last.status != 200 for _, last, _ in again)
    report.at_most(ITEM, "failed requests that a retry did not fix", unmet, 0)
    report.at_most(ITEM, "requests with two different results, retries included", same, 0)
    report.add(ITEM, "most retries of a client", max((n for _, _, n in again), default=0))
    told = [f"{_ago(o, kills)}: {o.kind} {o.status} {o.code}" for o in failed]
    report.note(f"\nKills of the ingress, ledger:\n\n{first.table()}\n")
    if told:
        report.note("Failed at first:\n" + "\n".join(f"- {line}" for line in told[:30]))


def judge_ingress(report: Report, outcomes: Sequence[Outcome], kills: Sequence[Kill]) -> None:
    """Only who was under way at a kill may have lost anything, and somebody was and had."""
    failed = [o for o in outcomes if o.status != 200]
    under_way = sum(any(k.within(o) for k in kills) for o in outcomes)
    report.add(ITEM, "of them in flight at a kill, on either ingress", under_way)
    # Without any the kills hit nobody.
    report.at_least(ITEM, "of those failed, and were retried by the client", len(failed), 1)
    report.at_most(ITEM, "failures of other requests", len(strays(outcomes, kills)), 0)


def strays(outcomes: Iterable[Outcome], kills: Sequence[Kill]) -> list[Outcome]:
    """Failed requests during which nothing was killed."""
    failed = (o for o in outcomes if o.status != 200)
    return [o for o in failed if not any(kill.within(o) for kill in kills)]


def made_again(service: Service, patience_s: float = 20.0) -> dict[str, float]:
    """Retries by outcome; Ray's metrics come seconds late."""
    ends = time.monotonic() + patience_s
    while not (told := service.metric("sam_retries_total")) and time.monotonic() < ends:
        time.sleep(0.5)
    return told


def _differ(one: Ledger, other: Ledger) -> int:
    """Questions that two ledgers answer differently."""
    answers = {o.key: o.digest for o in one.all() if o.digest}
    return sum(answers.get(o.key, o.digest) != o.digest for o in other.all() if o.digest)


def note_causes(report: Report, service: Service) -> None:
    """The last lines of tracebacks in the replicas' logs, counted."""
    counts: dict[str, int] = {}
    for role in ("ingress", *CHILDREN):
        for path in service.logs(role):
            traceback = False
            for line in Path(path).read_text("utf-8", "replace").splitlines():
                if line.startswith("Traceback"):
                    traceback = True
                elif traceback and line and not line.startswith((" ", "\t")):
                    text = f"{role}: {line[:160]}"
                    counts[text] = counts.get(text, 0) + 1
                    traceback = False
    if counts:
        common = sorted(counts.items(), key=lambda item: -item[1])[:20]
        report.note("\nFrom the replicas' logs:\n" + "\n".join(f"- {n} × {t}" for t, n in common))
