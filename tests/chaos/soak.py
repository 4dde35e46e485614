"""Item 13: half load for long; memory and descriptors of every replica must stay as they are.

Images rotate through more than the caches hold, so that these are full and in motion.  A leak is
also planted, to see that the same test finds it.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from serve_tools.bench.load import Outcome

from ..fakes.graph import graph
from .client import Client, median
from .processes import MIB, open_files, pss_bytes, slope_per_min
from .questions import POINT, SMALL, Ask, bmp, form, new_number
from .report import Report
from .service import Service, serving, serving_config

ITEM, LEAKING = "13 soak", "13 soak, leak planted"
WARM_UP_SHARE, LEAST_WARM_UP_S = 0.2, 60.0
SLOPE_MIB, FILES = 1.0, 5
EVERY_S = 2.0
CACHES = {"embedding_bytes": 8 * 2**20, "image_bytes": 2 * 2**20}
"""With fakes some hundred images fill them: in the first minute."""
LEAK = {"leak_bytes_per_s": 2 * MIB // 60, "leak_files_per_min": 8.0}


class Rotation:
    """Questions of all kinds on images by turns; each is new to the caches when it comes again."""

    def __init__(self, images: int, size: tuple[int, int]) -> None:
        self._numbers = [new_number() for _ in range(images)]
        self._size = size
        self._turn = itertools.count()

    def __call__(self) -> Ask:
        turn = next(self._turn)
        number = self._numbers[turn // 4 % len(self._numbers)]
        image = bmp(number, self._size)
        everything = {"points_per_side": 6}
        request: dict[str, Any] = (
            {"prompts": [POINT]},
            {"prompts": [POINT, {"box": [2, 2, 30, 30]}] * 4},
            {"text": ["cat"]},
            {"everything": everything},
        )[turn % 4]
        kind = ("new", "known", "text", "everything")[turn % 4]
        return form(kind, f"{kind}-{number}", image, request)


@dataclass
class Watch:
    """Memory and descriptors of each process, sampled in a thread of its own.

    Attributes:
        memory: anonymous, in MiB.
        whole: with files in it, as far as they are not others'.
    """

    pids: dict[str, int]
    began: float = field(default_factory=time.monotonic)
    at_s: list[float] = field(default_factory=list)
    memory: dict[str, list[float]] = field(default_factory=dict)
    whole: dict[str, list[float]] = field(default_factory=dict)
    files: dict[str, list[int]] = field(default_factory=dict)

    def __enter__(self) -> Watch:
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._stop.wait(EVERY_S):
            self.at_s.append(time.monotonic() - self.began)
            for who, pid in self.pids.items():
                self.memory.setdefault(who, []).append(pss_bytes(pid, "Pss_Anon") / MIB)
                self.whole.setdefault(who, []).append(pss_bytes(pid) / MIB)
                self.files.setdefault(who, []).append(open_files(pid))

    def slope(self, who: str, since_s: float) -> float:
        """MiB a minute after the warm-up."""
        late = [i for i, at in enumerate(self.at_s) if at >= since_s]
        return slope_per_min([self.at_s[i] for i in late], [self.memory[who][i] for i in late])

    def total(self, since_s: float, memory: dict[str, list[float]] | None = None) -> float:
        """MiB a minute of all together; ``memory``: another kind of it."""
        late = [i for i, at in enumerate(self.at_s) if at >= since_s]
        sums = [sum(found[i] for found in (memory or self.memory).values()) for i in late]
        return slope_per_min([self.at_s[i] for i in late], sums)

    def files_moved(self, who: str, since_s: float) -> int:
        """How far the medians of the first and the last third lie apart."""
        late = [n for at, n in zip(self.at_s, self.files[who], strict=True) if at >= since_s]
        third = max(1, len(late) // 3)
        first, last = sorted(late[:third]), sorted(late[-third:])
        return abs(last[len(last) // 2] - first[len(first) // 2]) if late else 10**6


def minutes(usual: float) -> float:
    """How long, unless the environment says otherwise."""
    return float(os.environ.get("SAM_SERVE_SOAK_MINUTES") or usual)


def run(report: Report, quick: bool) -> None:
    """Fakes, without a leak."""
    long = minutes(5.0 if quick else 30.0)
    judge_steady(report, ITEM, _soak(report, ITEM, long, {}), warm_up_s(long))


def run_leak(report: Report, quick: bool) -> None:
    """Encoders that leak: the bounds must break there, by what was planted."""
    long = minutes(4.0 if quick else 10.0)
    judge_leak(report, _soak(report, LEAKING, long, LEAK), warm_up_s(long))


def run_real(report: Report, quick: bool) -> None:
    """The real models of ``configs/local.yaml``."""
    path = Path(__file__).resolve().parents[2] / "configs" / "local.yaml"
    config = yaml.safe_load(path.read_text("utf-8"))
    arguments = config["applications"][0]["args"]
    # Small enough that half a minute fills them; one variant, always awake.
    arguments["cache"] |= {"embedding_bytes": 32 * MIB, "image_bytes": 4 * MIB}
    arguments["router"] = {"default": "fast"}
    arguments["variants"] = {"fast": arguments["variants"]["fast"]}
    config["applications"][0].pop("autoscaling_policy", None)
    with serving_config(config, "sam") as service:
        long = minutes(5.0 if quick else 30.0)
        item = "13 soak, real models"
        watch = asyncio.run(_run(report, item, service, long, 24, (640, 480), 2))
    judge_steady(report, item, watch, warm_up_s(long))


def _soak(report: Report, item: str, long: float, leak: dict[str, Any]) -> Watch:
    args = graph(fakes={"encode_ms": 40.0, **leak}, cache=CACHES)
    with serving(args) as service:
        return asyncio.run(_run(report, item, service, long, 1000, SMALL, 12))


def warm_up_s(long: float) -> float:
    """Of a run of so many minutes."""
    return max(LEAST_WARM_UP_S, WARM_UP_SHARE * long * 60)


def judge_steady(report: Report, item: str, watch: Watch, since_s: float) -> None:
    """No process grows, nor do all together."""
    slopes = {who: watch.slope(who, since_s) for who in watch.pids}
    worst = max(slopes, key=lambda who: slopes[who])
    report.at_most(
        item, f"memory, steepest ({worst.split()[0]})", slopes[worst], SLOPE_MIB, "MiB/min"
    )
    report.at_most(item, "memory, all replicas", watch.total(since_s), SLOPE_MIB, "MiB/min")
    whole = watch.total(since_s, watch.whole)
    report.add(item, "the same including shared libraries", f"{whole:+.2f} MiB/min")
    moved = {who: watch.files_moved(who, since_s) for who in watch.pids}
    most = max(moved, key=lambda who: moved[who])
    report.at_most(item, f"files, most moved ({most.split()[0]})", moved[most], FILES)
    report.note(
        f"\n{item}, MiB a minute: "
        + ", ".join(f"{who.split()[0]} {slope:+.2f}" for who, slope in slopes.items())
    )


def judge_leak(report: Report, watch: Watch, since_s: float) -> None:
    """Each encoder, and what is planted there, stands out; the others are told.

    What all replicas share, as while they are still warming up, is no leak that was found: an
    encoder must grow faster than the others do by the bound.
    """
    slopes = {who: watch.slope(who, since_s) for who in watch.pids}
    moved = {who: watch.files_moved(who, since_s) for who in watch.pids}
    leaking = [who for who in watch.pids if who.startswith("fast-encoder")]
    others = [who for who in watch.pids if who not in leaking]
    usual = median(slopes[who] for who in others)
    report.at_least(LEAKING, "encoders watched", len(leaking), 1)
    for turn, who in enumerate(leaking, 1):
        name = f"encoder {turn}"
        report.at_least(LEAKING, f"{name}, memory", slopes[who], SLOPE_MIB, "MiB/min")
        above = slopes[who] - usual
        report.at_least(LEAKING, f"{name}, above the others", above, SLOPE_MIB, "MiB/min")
        report.at_least(LEAKING, f"{name}, files moved", moved[who], FILES + 1)
    for who in others:
        told = f"{slopes[who]:+.2f} MiB/min, {moved[who]} files"
        report.add(LEAKING, f"no leak planted: {who.split()[0]}", told)


async def _run(
    report: Report,
    item: str,
    service: Service,
    long: float,
    images: int,
    size: tuple[int, int],
    callers: int,
) -> Watch:
    make: Callable[[], Ask] = Rotation(images, size)
    async with Client(service.url) as client:
        rate = await client.closed_loop(make, callers, 15.0) / 2
    if not rate:
        raise RuntimeError(f"nothing is answered:\n{client.ledger.table()}")
    pids = {f"{role} {pid}": pid for role, found in service.roles().items() for pid in found}
    failed = sent = 0
    with Watch(pids) as watch:
        ends = time.monotonic() + long * 60
        while time.monotonic() < ends:
            # Short spells: a ledger of half an hour would be this process' own leak.
            async with Client(service.url) as client:
                outcomes: list[Outcome] = await client.open_loop(make, rate, 20.0)
            sent += len(outcomes)
            amiss = sum(o.status != 200 for o in outcomes)
            if amiss and not failed:  # once: what failed, and how
                report.note(client.ledger.table())
            failed += amiss
    report.add(item, "half load", f"{rate:.1f}/s for {long:g} min", f"{sent} requests")
    report.at_most(item, "responses other than 200", failed, 0)
    return watch
