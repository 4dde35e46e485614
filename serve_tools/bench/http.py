"""Section c: services over HTTP, one at a time, under the same load."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

import httpx
import numpy as np

from serve_tools.bench.clients import Client
from serve_tools.bench.load import Window, closed_loop, recorded
from serve_tools.bench.photos import Photo, Photos
from serve_tools.bench.rows import Row

REPEATED = "repeated prompts on one image"
MIXED = "1 new image in 5"
THREE = "three known images in turn"
NEW = "new images, embedded alone"

BARE = "bare decoder call"
_P50_CASE = f"{REPEATED}, 1 caller, p50"

Serve = Callable[[], AbstractContextManager[str]]
"""Starts a service, yields its address, and stops it afterwards."""


@dataclass(frozen=True)
class System:
    """A service and its clients.

    Attributes:
        clients: by the system's name in the table.
        mixes: for each of them, the mixes that it takes part in.
    """

    serve: Serve
    clients: Mapping[str, Callable[[httpx.AsyncClient], Client]]
    mixes: Mapping[str, tuple[str, ...]]
    ours: bool = False


@dataclass(frozen=True)
class LoadEffort:
    """How long each combination is driven, once a round.

    Attributes:
        seconds: of sending; requests in flight then finish.
        least: minimum number of requests, however long they take.
        warm_s: sent before and not counted.
    """

    rounds: int = 3
    seconds: float = 5.0
    least: int = 8
    warm_s: float = 1.0
    concurrencies: tuple[int, ...] = (1, 4, 16)


Found = dict[tuple[str, str, int], list[Window]]
"""Windows, one a round, by system, mix and concurrency."""


def run(
    systems: Sequence[System],
    photos: Photos,
    effort: LoadEffort,
    *,
    bare: Callable[[], object] | None = None,
    work: Mapping[str, float] | None = None,
    peak: Callable[[], float] | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> tuple[list[Row], list[str]]:
    """Drive all services, round by round, and compare their throughput and latency.

    Args:
        systems: ours first; each is started, driven and ended before the next.
        bare: one prompt decoded in this process, without a service.
        work: operations of a request by mix; with ``peak`` they make the floor.
        peak: measures the operations a second that the machine allows, once a round while no
            service runs; the best counts.

    Returns:
        Rows, and notes on what failed.
    """
    found: Found = {}
    bare_ms: list[float] = []
    peaks: list[float] = []
    for number in range(effort.rounds):
        if peak is not None:
            peaks.append(peak())
        if bare is not None:
            bare_ms.append(_p50_ms(bare))
        # Ours is not always first: drift of the machine affects all.
        turn = number % len(systems)
        for system in [*systems[turn:], *systems[:turn]]:
            names = ", ".join(system.clients)
            say(f"round {number + 1} of {effort.rounds}: {names}")
            with system.serve() as url:
                asyncio.run(_drive_all(system, url, photos, effort, found))
    ours = {name for system in systems if system.ours for name in system.clients}
    floors = {mix: max(peaks) / flops for mix, flops in (work or {}).items() if peaks}
    return _rows(systems, found, ours, floors, bare_ms), _failures(found)


def _p50_ms(one: Callable[[], object], repeats: int = 15) -> float:
    one()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        one()
        times.append((time.perf_counter() - start) * 1e3)
    return float(np.median(times))


async def _drive_all(
    system: System, url: str, photos: Photos, effort: LoadEffort, found: Found
) -> None:
    limits = httpx.Limits(max_connections=max(effort.concurrencies) + 1)
    timeout = httpx.Timeout(300.0, connect=10.0)
    async with httpx.AsyncClient(
        base_url=url, limits=limits, timeout=timeout, trust_env=False
    ) as http:
        for name, make in system.clients.items():
            client = make(http)
            for known in photos.known:
                await client.introduce(known)
            for mix in system.mixes[name]:
                for concurrency in effort.concurrencies:
                    window = await drive_mix(client, mix, concurrency, photos, effort)
                    found.setdefault((name, mix, concurrency), []).append(window)


async def drive_mix(
    client: Client, mix: str, concurrency: int, photos: Photos, effort: LoadEffort
) -> Window:
    """Drive a mix, after sending its image again for services that keep only the last one."""
    await client.introduce(photos.known[0])
    rng = np.random.default_rng(concurrency)
    # At least as many as any service has been observed to take; more are made on demand.
    photos.prepare({MIXED: 24, NEW: 16}.get(mix, 0))

    async def send(number: int) -> Mapping[str, float]:
        photo = photo_of(mix, number, photos)
        x, y = rng.uniform(0.1, 0.9, 2) * photo.size
        return await client.send(photo, (round(float(x), 1), round(float(y), 1)))

    if mix in (REPEATED, THREE):
        await closed_loop(recorded(send), concurrency, effort.warm_s)
    return await closed_loop(
        recorded(send), concurrency, effort.seconds, least=max(effort.least, concurrency)
    )


def photo_of(mix: str, number: int, photos: Photos) -> Photo:
    """The photo of a mix's request of a number."""
    if mix == NEW or (mix == MIXED and number % 5 == 4):
        return photos.new()
    return photos.known[number % len(photos.known) if mix == THREE else 0]


def _rows(
    systems: Sequence[System],
    found: Found,
    ours: set[str],
    floors: Mapping[str, float],
    bare_ms: list[float],
) -> list[Row]:
    mixes = [m for m in (REPEATED, MIXED, THREE, NEW) if any(key[1] == m for key in found)]
    concurrencies = sorted({concurrency for _, _, concurrency in found})
    names = [name for system in systems for name in system.clients]
    rows = [
        _throughput(name, mix, concurrency, found[name, mix, concurrency], ours, floors)
        for mix in mixes
        for concurrency in concurrencies
        for name in names
        if (name, mix, concurrency) in found
    ]
    if not bare_ms:
        return rows
    floor = float(np.median(bare_ms))
    unit = "ms a request"
    rows.append(Row(case=_P50_CASE, system=BARE, unit=unit, rounds=tuple(bare_ms)))
    for name in names:
        windows = found.get((name, REPEATED, 1))
        if windows is None:
            continue
        p50 = [window.quantile_ms(0.5) for window in windows]
        added = [a - b for a, b in zip(p50, bare_ms, strict=False)]
        rows.append(
            Row(
                case=_P50_CASE, system=name, ours=name in ours, unit=unit, rounds=tuple(p50),
                floor=floor, dominates=f"{np.median(added):+.1f} ms over the bare call",
                details={"added_ms": float(np.median(added))},
            )
        )  # fmt: skip
    return rows


def _throughput(
    name: str,
    mix: str,
    concurrency: int,
    windows: Sequence[Window],
    ours: set[str],
    floors: Mapping[str, float],
) -> Row:
    details = {
        "p50_ms": float(np.median([w.quantile_ms(0.5) for w in windows])),
        "p95_ms": float(np.median([w.quantile_ms(0.95) for w in windows])),
        "requests": float(sum(len(w.latencies_ms) for w in windows)),
        "failures": float(sum(sum(w.failures.values()) for w in windows)),
    }
    return Row(
        case=f"{mix}, {concurrency} caller{'s' if concurrency > 1 else ''}",
        system=name,
        ours=name in ours,
        unit="requests/s",
        higher_is_better=True,
        rounds=tuple(window.requests_per_s for window in windows),
        floor=floors.get(mix),
        dominates=windows[-1].longest_stages(),
        # Without a successful response there are no quantiles.
        details={name: value for name, value in details.items() if np.isfinite(value)},
    )


def _failures(found: Found) -> list[str]:
    notes = []
    for (name, mix, concurrency), windows in found.items():
        for reason in sorted({reason for w in windows for reason in w.failures}):
            count = sum(w.failures.get(reason, 0) for w in windows)
            notes.append(f"{name}, {mix}, {concurrency} callers: {count} failed ({reason})")
    return notes
