"""`python -m tests.faults.redis_latency`: what the shared tier costs a lookup, state by state.

Each round passes through all states with a new tier of the default settings, which has been used
before the state begins: so the first lookups of a frozen or dead Redis are among the figures.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np

from serve_app.cache.redis import RedisTier
from serve_app.core.inference import Embedding
from serve_app.core.settings import CacheSettings
from serve_app.core.types import CacheTier
from serve_app.embeddings.tiers import TieredEmbeddingCache

from .redis_server import RedisServer

CALLERS = 4
PAUSE_S = 0.01
EMBEDDING = Embedding({"e": np.ones((256, 64, 64), np.float32)}, height=1024, width=1024)
STATES = ("no Redis configured", "up, a hit", "up, a miss", "frozen", "dead")


async def _computed() -> Embedding:
    return EMBEDDING


async def lookups(tier: RedisTier | None, key: str, count: int) -> list[float]:
    """Milliseconds of lookups, with a little time between those of each of four callers."""
    cache = TieredEmbeddingCache(0, tier)
    seconds: list[float] = []

    async def call(caller: int) -> None:
        for turn in range(count // CALLERS):
            name = key if key == "known" else f"{key}-{caller}-{turn}"
            compute = None if tier is not None else _computed
            begun = time.perf_counter()
            await cache.get_or_compute(name, compute)
            seconds.append(time.perf_counter() - begun)
            await asyncio.sleep(PAUSE_S)

    await asyncio.gather(*(call(caller) for caller in range(CALLERS)))
    return [s * 1e3 for s in seconds]


async def in_state(server: RedisServer, state: str, count: int) -> tuple[list[float], float]:
    """Times in this state, and the seconds until Redis was in use again after it."""
    if state == STATES[0]:
        return await lookups(None, "new", count), 0.0
    tier = RedisTier.connect(CacheSettings(redis_url=server.url))
    found = await TieredEmbeddingCache(0, tier).get_or_compute("known", _computed)
    assert found is not None
    await tier.written()
    await lookups(tier, "known", 40)
    if state == "frozen":
        server.stop()
    elif state == "dead":
        server.kill()
    times = await lookups(tier, "known" if state == "up, a hit" else "new", count)
    if state == "frozen":
        server.cont()
    elif state == "dead":
        await asyncio.to_thread(server.start)
    back = time.perf_counter()
    while tier.circuit_open:  # noqa: ASYNC110
        await asyncio.sleep(0.01)
    seconds = time.perf_counter() - back
    cache = TieredEmbeddingCache(0, tier)
    again = await cache.get_or_compute("again", _computed)
    await tier.written()
    again = await cache.get_or_compute("again", _computed)
    assert again is not None
    assert again[1] is CacheTier.REDIS
    await tier.close()
    return times, seconds


async def main(rounds: int, count: int) -> None:
    """Print the table."""
    times: dict[str, list[float]] = {state: [] for state in STATES}
    worst_back = dict.fromkeys(STATES, 0.0)
    with tempfile.TemporaryDirectory() as folder, RedisServer(Path(folder)) as server:
        for _ in range(rounds):
            for state in STATES:
                found, back = await in_state(server, state, count)
                times[state] += found
                worst_back[state] = max(worst_back[state], back)
    print(f"{rounds} rounds of {count} lookups, {CALLERS} callers; milliseconds")
    print(f"{'state':22}{'p50':>8}{'p99':>8}{'worst':>8}{'> 25 ms':>9}{'back in use after':>20}")
    for state, found in times.items():
        cuts = statistics.quantiles(found, n=100)
        waited = sum(ms > 25 for ms in found) / rounds
        print(
            f"{state:22}{cuts[49]:8.2f}{cuts[98]:8.2f}{max(found):8.1f}"
            f"{waited:7.1f}/r{worst_back[state]:18.1f} s"
        )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--lookups", type=int, default=1_000)
    given = parser.parse_args()
    asyncio.run(main(given.rounds, given.lookups))
