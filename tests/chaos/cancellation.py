"""Item 10: clients that leave at random phases; work for them stops, their neighbours' does not.

Each wave has those who leave, some in each phase, and as many neighbours who ask for the same
kinds of things in the same moment and stay.  When the wave is over the replicas must be empty.
"""

from __future__ import annotations

import asyncio
import random
import time
from contextlib import suppress
from dataclasses import dataclass
from urllib.parse import urlsplit

from ..faults.standins import graph
from .load import Client, Ledger
from .questions import POINT, Ask, batch, bmp, form, new_image, new_number
from .report import Report
from .service import Service, serving

ITEM = "10 cancellation"
TIMES = {"encode_ms": 400.0, "decode_ms": 100.0}
PHASES = ("upload", "embedding", "waiting", "decoding", "streaming")
STOP_S = 2.0
ASKED = {"fast-encoder": 1 + 8 + 48, "fast-decoder": 1 + 8 + 1600 + 48}
"""Images and prompts of five leavers, one in each phase, if nobody left."""
NEIGHBOURS, KNOWN_PROMPTS = 4, 16
"""In each wave so many with a new image, and as many with prompts on a known one."""
_POLL_S = 0.05


@dataclass(frozen=True)
class Leaver:
    """Who goes, and when: a share of the body that is sent, and seconds after that."""

    ask: Ask
    share: float
    after_s: float
    lines: bool = False


def leaver(phase: str, rng: random.Random) -> Leaver:
    """Somebody who leaves in a phase."""
    if phase == "upload":
        return Leaver(new_image((512, 384)), rng.uniform(0.1, 0.9), rng.uniform(0.0, 0.2))
    if phase == "embedding":
        return Leaver(new_image(), 1.0, rng.uniform(0.05, 0.35))
    if phase == "waiting":
        # Eight images more than the encoders take at once.
        return Leaver(batch(8), 1.0, rng.uniform(0.05, 0.3))
    if phase == "decoding":
        number, image = rng.choice(_KNOWN)
        points = {"everything": {"points_per_side": 40, "mode": "exact"}}
        ask = form("everything", f"everything-{number}", image, points)
        return Leaver(ask, 1.0, rng.uniform(0.2, 0.9))
    return Leaver(batch(48), 1.0, rng.uniform(0.0, 0.3), lines=True)


async def leave(url: str, one: Leaver) -> None:
    """Send a request and hang up."""
    parts = urlsplit(url)
    reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
    head = (
        f"POST {parts.path}{one.ask.path} HTTP/1.1\r\nhost: {parts.netloc}\r\n"
        f"content-type: {one.ask.content_type}\r\ncontent-length: {len(one.ask.body)}\r\n\r\n"
    )
    writer.write(head.encode() + one.ask.body[: int(one.share * len(one.ask.body))])
    await writer.drain()
    if one.lines:
        with suppress(TimeoutError):
            await asyncio.wait_for(reader.readuntil(b'"index"'), 10.0)
    await asyncio.sleep(one.after_s)
    writer.transport.abort()


def run(report: Report, quick: bool) -> None:
    """Waves of ten who leave, two in each phase."""
    args = graph(standins=TIMES)
    with serving(args) as service, service.cluster.driver():
        asyncio.run(_run(report, service, 2 if quick else 10))


async def _run(report: Report, service: Service, waves: int) -> None:
    rng = random.Random(10)
    stopped: list[float] = []
    async with Client(service.url) as client:
        await client.open_loop(new_image, 4.0, 2.0)
        await make_known(client)
        await until_empty(service, 30.0)
        before = await asyncio.to_thread(service.done)
        client.ledger = Ledger()
        for _ in range(waves):
            leavers = [leaver(phase, rng) for phase in PHASES * 2]
            mates = [
                asyncio.create_task(client.ask(ask))
                for turn in range(NEIGHBOURS)
                for ask in (new_image(), _known(turn))
            ]
            await asyncio.gather(*(leave(service.url, one) for one in leavers))
            gone = time.monotonic()
            await asyncio.gather(*mates)
            await until_empty(service, 20.0)
            stopped.append(time.monotonic() - gone)
        ledger = client.ledger
    after = await asyncio.to_thread(service.done)
    spent = {role: count - before.get(role, 0) for role, count in after.items()}
    report.add(ITEM, "disconnects", waves * 10, f"{waves * 2} in each phase")
    worst = max(stopped)
    report.at_most(
        ITEM, "all queues and slots free after the last one left, worst", worst, STOP_S, "s"
    )
    report.add(ITEM, "the same, median", f"{sorted(stopped)[len(stopped) // 2]:.2f} s")
    stayed = {"fast-encoder": NEIGHBOURS, "fast-decoder": NEIGHBOURS * (1 + KNOWN_PROMPTS)}
    for role, what in (("fast-encoder", "images embedded"), ("fast-decoder", "prompts decoded")):
        theirs, whole = spent.get(role, 0) - waves * stayed[role], waves * 2 * ASKED[role]
        # Some leave when their work is all but done; most of the whole must not be done.
        report.at_most(ITEM, f"of theirs all the same: {what}", theirs, whole / 2)
    failed = sum(o.status != 200 for o in ledger.all())
    report.at_most(ITEM, "neighbours' answers other than 200", failed, 0)
    report.at_most(ITEM, "neighbours' questions with two answers", ledger.contradictions(), 0)
    report.note(f"\nCancellation, neighbours' ledger:\n\n{ledger.table()}\n")


_KNOWN = [(number, bmp(number)) for number in (new_number() for _ in range(NEIGHBOURS))]


def _known(turn: int) -> Ask:
    number, image = _KNOWN[turn]
    box = {"box": [2, 2, 30, 30]}
    return form("known", f"known-{number}", image, {"prompts": [POINT, box] * (KNOWN_PROMPTS // 2)})


async def make_known(client: Client) -> None:
    """Have the images embedded on which leavers and neighbours prompt."""
    await asyncio.gather(*(client.ask(_known(turn)) for turn in range(NEIGHBOURS)))


async def until_empty(service: Service, patience_s: float) -> float:
    """Seconds until no replica has anything to do; infinite if it takes too long."""
    began = time.monotonic()
    while True:
        busy = await asyncio.to_thread(service.busy)
        passed = time.monotonic() - began
        if not busy:
            return passed
        if passed > patience_s:
            print("still busy:", busy, flush=True)
            return float("inf")
        await asyncio.sleep(_POLL_S)
