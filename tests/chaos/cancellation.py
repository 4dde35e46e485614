"""Item 10: clients that leave at random phases; work for them stops, their neighbours' does not.

Each wave has those who leave, some in each phase, and as many neighbours who ask for the same
kinds of things in the same moment and stay.  When the wave is over the replicas must be empty.

Those of a phase have images of a size of their own, by which the fakes count what was done for
them.  Nobody leaves before the phase: a client that had its answer, or none of its lines, is told.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

from ..fakes.graph import graph
from .client import Client, Ledger
from .questions import POINT, Ask, batch, bmp, form, new_image, new_number
from .report import Report
from .service import Service, serving

ITEM = "10 cancellation"
TIMES = {"encode_ms": 400.0, "decode_ms": 100.0}
STOP_S, PATIENCE_S = 2.0, 30.0
NEIGHBOURS, KNOWN_PROMPTS = 4, 16
"""In each wave so many with a new image, and as many with prompts on a known one."""
HEAD_START_S = 0.15
_POLL_S = 0.05


@dataclass(frozen=True)
class Phase:
    """When clients leave, and what is done for one of them who stays.

    Attributes:
        size: of their images: width and height.
        embeds, decodes: images and prompts for one who stays.
        begun: a role that must have begun: else nobody left in the middle of anything.
    """

    size: tuple[int, int]
    embeds: int
    decodes: int
    begun: str | None = None

    def whole(self, role: str) -> int:
        return self.embeds if role == "fast-encoder" else self.decodes


SIDE = 60
"""Points a side of an "everything": 113 passes of a decoder."""
PHASES: Mapping[str, Phase] = {
    # They come first, so that encoders are free for them.
    "embedding": Phase((72, 54), 1, 1, "fast-encoder"),
    "upload": Phase((512, 384), 1, 1),
    "waiting": Phase((80, 60), 8, 8),
    "decoding": Phase((88, 66), 0, SIDE * SIDE, "fast-decoder"),
    "streaming": Phase((96, 72), 48, 48, "fast-decoder"),
}
ROLES = {"fast-encoder": "images embedded", "fast-decoder": "prompts decoded"}
Done = dict[str, Counter[str]]
"""Items by phase and role."""


@dataclass(frozen=True)
class Canceller:
    """Who goes, and when: a share of the body that is sent, and seconds after that.

    Attributes:
        lines: after the answer's first line, instead of after the body.
    """

    phase: str
    ask: Ask
    share: float
    after_s: float
    lines: bool = False

    @property
    def streamed(self) -> bool:
        return self.ask.kind == "batch"


def canceller(phase: str, rng: random.Random, encode_s: float) -> Canceller:
    """Somebody who leaves in a phase; ``encode_s``: seconds of a pass of the encoder."""
    size = PHASES[phase].size
    if phase == "upload":
        return Canceller(phase, new_image(size), rng.uniform(0.1, 0.9), rng.uniform(0.0, 0.2))
    if phase == "embedding":
        return Canceller(phase, new_image(size), 1.0, rng.uniform(0.5, 0.95) * encode_s)
    if phase == "waiting":
        # Eight images more than the encoders take at once.
        return Canceller(phase, batch(8, size), 1.0, rng.uniform(0.1, 0.75) * encode_s)
    if phase == "decoding":
        number, image = rng.choice(_DECODED)
        points = {"everything": {"points_per_side": SIDE, "mode": "exact"}}
        ask = form("everything", f"everything-{number}", image, points)
        return Canceller(phase, ask, 1.0, rng.uniform(0.05, 0.3))
    return Canceller(phase, batch(48, size), 1.0, rng.uniform(0.0, 0.3), lines=True)


Begun = Callable[[], Awaitable[None]]


async def leave(url: str, one: Canceller, begun: Begun | None = None) -> str:
    """Send a request and hang up.

    Args:
        begun: waited for before whoever leaves while decoding does: how long it takes until a
            decoder has begun is up to the machine.

    Answers:
        what was amiss, as it was not in its phase that the client left; else empty.
    """
    reader, writer = await send(url, one)
    try:
        if one.lines:
            return await after_a_line(reader, one)
        if begun is not None and one.phase == "decoding":
            await begun()
        return await _before_an_answer(reader, one)
    finally:
        writer.transport.abort()


async def send(url: str, one: Canceller) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Send a request, or as much of it as is to be sent, on a connection of its own."""
    parts = urlsplit(url)
    reader, writer = await asyncio.open_connection(parts.hostname, parts.port, limit=2**20)
    head = (
        f"POST {parts.path}{one.ask.path} HTTP/1.1\r\nhost: {parts.netloc}\r\n"
        f"content-type: {one.ask.content_type}\r\ncontent-length: {len(one.ask.body)}\r\n\r\n"
    )
    try:
        writer.write(head.encode() + one.ask.body[: int(one.share * len(one.ask.body))])
        await writer.drain()
    except BaseException:
        writer.transport.abort()
        raise
    return reader, writer


async def after_a_line(reader: asyncio.StreamReader, one: Canceller) -> str:
    """Wait for the answer's first line, and a while; what was amiss, else empty."""
    try:
        async with asyncio.timeout(PATIENCE_S):
            head = await reader.readuntil(b"\r\n\r\n")
            if head.split()[1] != b"200":
                return f"{one.phase}: answered {head.split()[1].decode()}"
            # Sizes of chunks end in a newline, too.
            line = await reader.readuntil(b"}\n")
    except (OSError, EOFError, asyncio.LimitOverrunError) as exc:
        return f"{one.phase}: no line, {type(exc).__name__}"
    if b'"result"' not in line:
        return f"{one.phase}: the first line is an error's"
    await asyncio.sleep(one.after_s)
    return ""


async def _before_an_answer(reader: asyncio.StreamReader, one: Canceller) -> str:
    answer = b""
    try:
        async with asyncio.timeout(one.after_s):
            while piece := await reader.read(65_536):
                answer += piece
    except TimeoutError:
        # A stream's head comes at once, and none of its lines.
        if not answer or (one.streamed and answer.split()[1] == b"200" and b"}\n" not in answer):
            return ""
    except OSError as exc:
        return f"{one.phase}: {type(exc).__name__}"
    return f"{one.phase}: answered too early, {answer.split()[1:2]}"


def run(report: Report, quick: bool) -> None:
    """Waves of ten who leave, two in each phase."""
    args = graph(fakes=TIMES)
    with serving(args) as service, service.cluster.driver():
        asyncio.run(_run(report, service, 2 if quick else 10))


async def _run(report: Report, service: Service, waves: int) -> None:
    rng = random.Random(10)
    stopped, amiss = list[float](), list[str]()
    async with Client(service.url) as client:
        await client.open_loop(new_image, 4.0, 2.0)
        await make_known(client)
        await until_empty(service, 30.0)
        before = await asyncio.to_thread(done, service)
        client.ledger = Ledger()
        for _ in range(waves):
            encode_s = TIMES["encode_ms"] / 1e3
            clients = [canceller(phase, rng, encode_s) for phase in PHASES for _ in range(2)]
            begun = await decoder_begins(service)
            leaving = [asyncio.create_task(leave(service.url, one, begun)) for one in clients[:2]]
            await asyncio.sleep(HEAD_START_S)
            leaving += [asyncio.create_task(leave(service.url, one, begun)) for one in clients[2:]]
            mates = [
                asyncio.create_task(client.ask(ask))
                for turn in range(NEIGHBOURS)
                for ask in (new_image(), _known(turn))
            ]
            told = await asyncio.gather(*leaving)
            gone = time.monotonic()
            amiss += filter(None, told)
            await asyncio.gather(*mates)
            await until_empty(service, 20.0)
            stopped.append(time.monotonic() - gone)
        ledger = client.ledger
    after = await asyncio.to_thread(done, service)
    report.add(ITEM, "disconnects", waves * 10, f"{waves * 2} in each phase")
    worst = max(stopped)
    report.at_most(
        ITEM, "all queues and slots free after the last disconnect, worst", worst, STOP_S, "s"
    )
    report.add(ITEM, "the same, median", f"{sorted(stopped)[len(stopped) // 2]:.2f} s")
    judge(report, minus(after, before), waves * 2, amiss)
    failed = sum(o.status != 200 for o in ledger.all())
    report.at_most(ITEM, "neighbours' responses other than 200", failed, 0)
    report.at_most(
        ITEM, "neighbours' requests with two different results", ledger.contradictions(), 0
    )
    report.note(f"\nCancellation, neighbours' ledger:\n\n{ledger.table()}\n")


def judge(report: Report, spent: Done, each: int, amiss: Sequence[str]) -> None:
    """Whether clients left in their phase, and most of the work for them was left undone.

    Args:
        spent: what was done for those of each phase.
        each: clients that left in each phase.
        amiss: what `leave` told.
    """
    report.at_most(ITEM, "disconnects before or after the phase", len(amiss), 0)
    for what, count in Counter(amiss).items():
        report.note(f"- {count} × {what}")
    for name, phase in PHASES.items():
        for role, what in ROLES.items():
            whole, found = each * phase.whole(role), spent[name][role]
            told = f"while {name}: of {whole:,} {what} nevertheless"
            if name == "upload":
                report.at_most(ITEM, told, found, 0)
            elif whole > each:
                # Some leave when their work is half done; most of the whole must not be done.
                report.at_most(ITEM, told, found, whole / 2)
            else:
                # A pass that has begun is not broken off: no bound.
                report.add(ITEM, told, found)
            # Of a single one who leaves within a pass it is not sure that it had begun.
            if role == phase.begun and (each > 1 or whole > 1):
                report.at_least(ITEM, f"while {name}: {what}, so work had started", found, 1)


_KNOWN = [(number, bmp(number)) for number in (new_number() for _ in range(NEIGHBOURS))]
_DECODED = [(n, bmp(n, PHASES["decoding"].size)) for n in (new_number() for _ in range(2))]


def _known(turn: int) -> Ask:
    number, image = _KNOWN[turn]
    box = {"box": [2, 2, 30, 30]}
    return form("known", f"known-{number}", image, {"prompts": [POINT, box] * (KNOWN_PROMPTS // 2)})


async def make_known(client: Client) -> None:
    """Have the images embedded on which clients and neighbours prompt."""
    first = [form("first", f"first-{n}", image, {"prompts": [POINT]}) for n, image in _DECODED]
    known = [_known(turn) for turn in range(NEIGHBOURS)]
    outcomes = await asyncio.gather(*(client.ask(ask) for ask in first + known))
    if any(outcome.status != 200 for outcome in outcomes):
        raise RuntimeError(f"images are not embedded:\n{client.ledger.table()}")


async def decoder_begins(service: Service) -> Begun:
    """Waits until decoders have done more for those who leave while decoding than by now."""
    size = PHASES["decoding"].size
    before = await asyncio.to_thread(service.done, size)

    async def begun() -> None:
        ends = time.monotonic() + PATIENCE_S
        while time.monotonic() < ends:
            if await asyncio.to_thread(service.done, size) != before:
                break
            await asyncio.sleep(_POLL_S)

    return begun


def done(service: Service) -> Done:
    """What has been done on the images of each phase's size."""
    return {name: service.done(phase.size) for name, phase in PHASES.items()}


def minus(after: Done, before: Done) -> Done:
    """What was done in between; none of it less than nothing."""
    return {name: after[name] - before[name] for name in after}


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
