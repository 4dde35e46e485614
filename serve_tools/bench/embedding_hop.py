"""Section f, in part: what it costs to move an embedding, in full and in half precision.

Two ways: from an encoder replica to a decoder replica through Ray's object store, and to and from
a Redis that is shared by all replicas.
"""

from __future__ import annotations

import asyncio
import shutil
import subprocess
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import redis
from ray import serve

from serve_app.cache.codec import decode_embedding, encode_embedding
from serve_app.cache.redis import RedisTier
from serve_app.core.settings import CacheSettings
from serve_app.core.types import Embedding, RgbArray
from serve_app.deployments.calls import ImageObjectRef, RemoteEncoder
from serve_tools.bench.rows import Row

KINDS = {"float32, 4 MB": np.float32, "float16, 2 MB": np.float16}
_EMPTY = "nothing, a call alone"
_PIXELS = np.zeros((4, 4, 3), np.uint8)
_APP = "embedding-hop"
_START_S = 10.0
_SMALL = {"num_cpus": 0}
"""They wait for each other: however few cores there are, all must find a place."""

Times = Mapping[str, list[float]]
"""Milliseconds of each repetition by kind."""


def embedding(kind: str) -> Embedding:
    """As large as SAM's, of noise."""
    if kind == _EMPTY:
        return Embedding({}, height=4, width=4)
    features = np.random.default_rng(0).standard_normal((256, 64, 64), np.float32)
    return Embedding({"image_embed": features.astype(KINDS[kind])}, height=4, width=4)


class _Encoder:
    def __init__(self, kind: str) -> None:
        self._embedding = embedding(kind)

    async def encode(self, pixels: RgbArray, time_left_s: float | None = None) -> Embedding:
        return self._embedding


class _Decoder:
    """Asks each encoder by turns, as a decoder replica does."""

    def __init__(self, encoders: dict[str, Any]) -> None:
        self._encoders = {kind: RemoteEncoder(handle) for kind, handle in encoders.items()}

    async def times(self, repeats: int) -> Times:
        pixels = await ImageObjectRef.put(_PIXELS)
        return await _by_turns(
            {kind: partial(to.encode, pixels) for kind, to in self._encoders.items()}, repeats
        )


def object_store_rows(*, repeats: int = 40) -> list[Row]:
    """Encoder replica to decoder replica, on the Ray that this process has joined or started."""
    encoders = {
        kind: serve.deployment(name=f"encoder-{i}", ray_actor_options=_SMALL)(_Encoder).bind(kind)
        for i, kind in enumerate([*KINDS, _EMPTY])
    }
    decoder = serve.deployment(name="decoder", ray_actor_options=_SMALL)(_Decoder).bind(encoders)
    handle = serve.run(decoder, name=_APP, route_prefix=None)
    try:
        times: Times = handle.times.remote(repeats).result(timeout_s=120.0)
    finally:
        serve.delete(_APP)
    return _rows("encoder replica to decoder replica", times)


def redis_rows(*, repeats: int = 40) -> list[Row] | None:
    """To and from a Redis of this machine; None where there is no ``redis-server``."""
    program = shutil.which("redis-server")
    if program is None:
        return None
    with _redis(program) as url:
        writes, reads = asyncio.run(_redis_times(url, repeats))
    return _rows("to Redis, checksum included", writes) + _rows("from Redis", reads)


async def _redis_times(url: str, repeats: int) -> tuple[Times, Times]:
    # Without the short time limit of the service: a busy moment is to be seen, not skipped.
    tier = RedisTier.connect(CacheSettings(redis_url=url, redis_ttl_s=60, redis_timeout_s=1.0))
    found = {kind: embedding(kind) for kind in KINDS}

    async def write(kind: str) -> None:
        tier.put(kind, partial(encode_embedding, kind, found[kind]), found[kind].nbytes)
        await tier.written()

    async def read(kind: str) -> None:
        data = await tier.get(kind)
        if data is None or await asyncio.to_thread(decode_embedding, kind, data) is None:
            raise RuntimeError("Redis has lost what was written")

    writes = await _by_turns({kind: partial(write, kind) for kind in KINDS}, repeats)
    reads = await _by_turns({kind: partial(read, kind) for kind in KINDS}, repeats)
    await tier.close()
    return writes, reads


@contextmanager
def _redis(program: str) -> Iterator[str]:
    """A server of its own, on a socket in a folder of its own, that keeps nothing on disk."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "socket"
        options = ["--port", "0", "--unixsocket", str(path), "--save", "", "--appendonly", "no"]
        server = subprocess.Popen(  # noqa: S603 - a program of this machine, found by its name
            [program, *options], stdout=subprocess.DEVNULL, cwd=folder
        )
        try:
            _wait_for(path)
            yield f"unix://{path}"
        finally:
            server.terminate()
            server.wait(_START_S)


def _wait_for(path: Path) -> None:
    latest = time.monotonic() + _START_S
    while True:
        try:
            redis.Redis(unix_socket_path=str(path)).ping()
            return
        except redis.exceptions.ConnectionError:
            if time.monotonic() > latest:
                raise
            time.sleep(0.02)


async def _by_turns(passes: Mapping[str, Callable[[], Awaitable[Any]]], repeats: int) -> Times:
    """Milliseconds; the first round is a warm-up."""
    times: dict[str, list[float]] = {kind: [] for kind in passes}
    for turn in range(repeats + 1):
        for kind, run in passes.items():
            begun = time.perf_counter()
            await run()
            if turn:
                times[kind].append((time.perf_counter() - begun) * 1e3)
    return times


def _rows(case: str, times: Times) -> list[Row]:
    return [
        Row(case=case, system=kind, ours=i == 0, unit="ms", rounds=tuple(of_kind))
        for i, (kind, of_kind) in enumerate(times.items())
    ]


def main() -> None:
    """Print both tables."""
    import ray

    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    try:
        rows = object_store_rows()
    finally:
        ray.shutdown()
    rows += redis_rows() or []
    for row in rows:
        p50, low, high = row.figure
        print(f"{row.case}: {row.system}: {p50:.2f} ms ({low:.2f} to {high:.2f})")


if __name__ == "__main__":
    main()
