"""Sections that measure only our running service: text prompts, a hundred boxes, and memory."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import orjson

from serve_tools.bench.clients import OurClient, post
from serve_tools.bench.load import RequestFailed, closed_loop, recorded
from serve_tools.bench.photos import Photo, Photos
from serve_tools.bench.rows import Row

OURS = "ours"
_MIB = 2**20
_PROC = Path("/proc")


async def text(http: httpx.AsyncClient, photos: Photos, variant: str, rounds: int) -> list[Row]:
    """Seconds from a word to masks, on known and on new photos, one request after the other."""
    known = photos.known[0]
    body = await _segment(http, known, {"text": ["cup"], "variant": variant})
    image_id = str(body["image_id"])
    times: dict[str, list[float]] = {"known image": [], "new image": []}
    stages: dict[str, list[Mapping[str, float]]] = {name: [] for name in times}
    photos.prepare(rounds)
    for _ in range(rounds):
        for case, image in (("known image", image_id), ("new image", photos.new())):
            begin = time.perf_counter()
            body = await _segment(http, image, {"text": ["cup"], "variant": variant})
            times[case].append(time.perf_counter() - begin)
            stages[case].append(body["timings_ms"])
    engine = str(body["text_engine"])
    return [
        Row(
            case=case, system=f"{OURS} ({engine})", ours=True, unit="s a request",
            rounds=tuple(took), dominates=_stages(stages[case]),
        )
        for case, took in times.items()
    ]  # fmt: skip


async def boxes(
    http: httpx.AsyncClient,
    photo: Photo,
    variant: str,
    rounds: int,
    *,
    count: int = 100,
    floor_s: float | None = None,
) -> list[Row]:
    """Seconds for many boxes on one known image in one call, one mask each."""
    body = await post(http, "/v1/embed", files={"file": photo.jpeg}, data={"variant": variant})
    rng = np.random.default_rng(0)
    corners = rng.uniform(0.0, 0.8, (count, 2))
    spans = rng.uniform(0.05, 0.2, (count, 2))
    found = np.hstack([corners, corners + spans]) * np.tile(photo.size, 2)
    fields = {
        "prompts": [{"box": box, "multimask_output": False} for box in found.round(1).tolist()],
        "variant": variant,
    }
    times, stages = [], []
    for number in range(rounds + 1):
        begin = time.perf_counter()
        done = await _segment(http, str(body["image_id"]), fields)
        if len(done["results"]) != count:
            raise RequestFailed(f"{len(done['results'])} results instead of {count}")
        if number > 0:  # the first is for warming up
            times.append(time.perf_counter() - begin)
            stages.append(done["timings_ms"])
    return [
        Row(
            case=f"{count} boxes on a known image", system=OURS, ours=True, unit="s a call",
            rounds=tuple(times), floor=floor_s, dominates=_stages(stages),
        )
    ]  # fmt: skip


async def memory(
    http: httpx.AsyncClient,
    photos: Photos,
    variant: str,
    requests: int,
    held: Callable[[str], Mapping[str, int]],
    new_every: int = 20,
) -> list[Row]:
    """MiB of the variant's replicas before and after many requests.

    Args:
        held: returns the bytes of each process with a text in its name, by name.
        new_every: one request in this many has a new image, so that caches fill up as well.
    """
    client = OurClient(http, variant, by_id=True)
    for photo in photos.known:
        await client.introduce(photo)
    rng = np.random.default_rng(0)

    async def send(number: int) -> Mapping[str, float]:
        known = photos.known[number % len(photos.known)]
        photo = photos.new() if number % new_every == 0 else known
        x, y = rng.uniform(0.1, 0.9, 2) * photo.size
        return await client.send(photo, (float(x), float(y)))

    # The first tenth fills arenas and, of the caches, a part.
    first = max(1, requests // 10)
    await closed_loop(recorded(send), 8, 0.0, least=first, most=first)
    name = f":{variant}-"
    before = held(name)
    rest = requests - first
    window = await closed_loop(recorded(send), 8, 0.0, least=rest, most=rest)
    after = held(name)
    if window.failures:
        raise RequestFailed(f"{sum(window.failures.values())} requests failed")
    return [
        Row(
            case=process, system=OURS, ours=True, unit="MiB",
            rounds=(bytes_ / _MIB,),
            details={
                "before": before.get(process, 0) / _MIB,
                "growth": (bytes_ - before.get(process, 0)) / _MIB,
            },
            dominates=f"{(bytes_ - before.get(process, 0)) / _MIB:+.0f} MiB over "
            f"{rest} requests, one in {new_every} with a new image",
        )
        for process, bytes_ in sorted(after.items())
    ]  # fmt: skip


def replica_bytes(name: str) -> dict[str, int]:
    """Proportional set size of each Serve replica on this machine with a text in its name."""
    found = {}
    for folder in _PROC.glob("[0-9]*"):
        try:
            title = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode().strip()
            if "ServeReplica:" not in title or name not in title:
                continue
            rollup = (folder / "smaps_rollup").read_text(encoding="ascii")
        except (OSError, UnicodeDecodeError):
            continue
        kilobytes = [int(line.split()[1]) for line in rollup.splitlines() if line[:4] == "Pss:"]
        found[title.split("ServeReplica:")[1].split()[0]] = 1024 * sum(kilobytes)
    return found


def with_client(
    url: str, measure: Callable[[httpx.AsyncClient], Awaitable[list[Row]]]
) -> list[Row]:
    """Run a measurement of this module with an HTTP client of the service."""

    async def run() -> list[Row]:
        timeout = httpx.Timeout(300.0, connect=10.0)
        async with httpx.AsyncClient(base_url=url, timeout=timeout, trust_env=False) as http:
            return await measure(http)

    return asyncio.run(run())


async def _segment(
    http: httpx.AsyncClient, image: Photo | str, fields: Mapping[str, Any]
) -> dict[str, Any]:
    if isinstance(image, str):
        content = orjson.dumps({"image_id": image, **fields})
        headers = {"content-type": "application/json"}
        return await post(http, "/v1/segment", content=content, headers=headers)
    data = {"request": orjson.dumps(fields).decode()}
    return await post(http, "/v1/segment", files={"file": image.jpeg}, data=data)


def _stages(stages_ms: Sequence[Mapping[str, float]]) -> str:
    """Mean milliseconds of the longest stages."""
    sums: dict[str, float] = {}
    for stages in stages_ms:
        for name, ms in stages.items():
            if name != "total":
                sums[name] = sums.get(name, 0.0) + ms / len(stages_ms)
    longest = sorted(sums.items(), key=lambda item: -item[1])[:4]
    return ", ".join(f"{name} {ms:.0f} ms" for name, ms in longest if ms >= 1)
