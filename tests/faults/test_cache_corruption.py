"""Whatever lies in the shared tier: a value as written, or a counted miss and the right answer."""

from __future__ import annotations

import hashlib
import io
import pickle
import random
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save

from serve_app.cache.shared import add_checksum, encode_embedding
from serve_app.core.errors import UnknownImage
from serve_app.core.inference import Embedding
from serve_app.core.limits import Limits
from serve_app.core.request import image_id
from serve_app.core.types import CacheTier
from serve_app.embeddings.tiers import TieredEmbeddingCache
from serve_app.images.store import ImageStore
from serve_app.telemetry.metrics import CACHE_LOOKUPS

KEY = "emb-of-this-image"
TENSORS = {
    "image_embed": np.random.default_rng(5).normal(size=(16, 8, 8)).astype(np.float32),
    "high_res": np.arange(300, dtype=np.float16),
}
RIGHT = Embedding(TENSORS, height=30, width=100)
OTHER = Embedding({"image_embed": np.ones((16, 8, 8), np.float32)}, height=30, width=100)
GOOD = encode_embedding(KEY, RIGHT)


class DictTier:
    """A shared tier in which anything may lie."""

    def __init__(self, kept: dict[str, bytes]) -> None:
        self.kept = kept

    async def get(self, key: str) -> bytes | None:
        return self.kept.get(key)

    def put(self, key: str, value: Callable[[], bytes], nbytes: int) -> bool:
        self.kept[key] = value()
        return True


def bit_flips(data: bytes, count: int) -> Iterator[bytes]:
    rng = random.Random(256)
    for bit in rng.sample(range(8 * len(data)), count):
        damaged = bytearray(data)
        damaged[bit // 8] ^= 1 << bit % 8
        yield bytes(damaged)


def truncations(data: bytes) -> Iterator[bytes]:
    lengths = {*range(min(160, len(data))), *range(160, len(data), 97), len(data) - 1}
    return (data[:n] for n in sorted(lengths))


def forged(key: str, body: bytes) -> bytes:
    """A value whose checksum is right, as only somebody who knows this code could write."""
    return b"SAMVAL02" + hashlib.sha256(key.encode() + b"\0" + body).digest() + body


def old_version(key: str, body: bytes) -> bytes:
    """What this service wrote before its values had their present form."""
    return b"SAMEMB01" + hashlib.sha256(key.encode() + b"\0" + body).digest() + body


def header_lengths() -> Iterator[bytes]:
    """safetensors files that lie about the length of their header, behind a right checksum."""
    size = struct.pack(">II", 30, 100)
    tensors = save(TENSORS)
    right = int.from_bytes(tensors[:8], "little")
    for length in (0, 1, right - 1, right + 1, len(tensors), 2**31, 2**63, 2**64 - 1):
        yield forged(KEY, size + length.to_bytes(8, "little") + tensors[8:])


class Canary:
    """Unpickled, it leaves a file at ``path``."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


def pickles(path: Path) -> Iterator[bytes]:
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        bomb = pickle.dumps(Canary(path), protocol)
        yield from (bomb, GOOD[:40] + bomb, forged(KEY, bomb), forged(KEY, bytes(8) + bomb))


def damaged_values(canary: Path) -> Iterator[tuple[str, bytes]]:
    cases: dict[str, Iterator[bytes]] = {
        "bit flip": bit_flips(GOOD, 256),
        "truncated": truncations(GOOD),
        "of another key": iter([encode_embedding("emb-of-another", OTHER)]),
        "old version": iter([old_version(KEY, GOOD[40:]), GOOD.replace(b"02", b"03", 1)]),
        "pickle": pickles(canary),
        "oversize": iter([GOOD + b"\0", GOOD + bytes(32 * 2**20), bytes(64 * 2**20)]),
        "header length": header_lengths(),
        "an image": iter([add_checksum(KEY, png(0))]),
    }
    for kind, values in cases.items():
        yield from ((kind, value) for value in values)


def png(value: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.full((5, 7, 3), value, np.uint8)).save(buffer, format="PNG")
    return buffer.getvalue()


async def _asked(tier: DictTier) -> tuple[Embedding, CacheTier]:
    async def compute() -> Embedding:
        return RIGHT

    found = await TieredEmbeddingCache(10**6, tier).get_or_compute(KEY, compute)
    assert found is not None
    return found


async def test_a_good_value_is_a_hit(counted: Any) -> None:
    found, tier = await _asked(DictTier({KEY: GOOD}))
    assert tier is CacheTier.REDIS
    np.testing.assert_array_equal(found.tensors["image_embed"], TENSORS["image_embed"])
    assert counted.of(CACHE_LOOKUPS, cache="embedding", result="corrupt") == 0


async def test_every_damaged_embedding_is_a_counted_miss_with_the_right_answer(
    tmp_path: Path, counted: Any
) -> None:
    canary = tmp_path / "sings"
    seen: dict[str, int] = {}
    for number, (kind, value) in enumerate(damaged_values(canary), start=1):
        tier = DictTier({KEY: value})
        found, from_ = await _asked(tier)
        assert (found, from_) == (RIGHT, CacheTier.MISS), kind
        assert counted.of(CACHE_LOOKUPS, cache="embedding", result="corrupt") == number, kind
        assert tier.kept[KEY] == GOOD, kind  # mended
        seen[kind] = seen.get(kind, 0) + 1
    assert not canary.exists()
    assert (seen["bit flip"], len(seen)) == (256, 8)
    assert seen["truncated"] > 200


async def test_two_swapped_values_are_two_misses(counted: Any) -> None:
    kept = {KEY: GOOD, "emb-of-another": encode_embedding("emb-of-another", OTHER)}
    kept[KEY], kept["emb-of-another"] = kept["emb-of-another"], kept[KEY]
    cache = TieredEmbeddingCache(10**6, DictTier(kept))
    assert await cache.get_or_compute(KEY, None) is None
    assert await cache.get_or_compute("emb-of-another", None) is None
    assert counted.of(CACHE_LOOKUPS, cache="embedding", result="corrupt") == 2


async def test_every_damaged_image_is_a_counted_miss(tmp_path: Path, counted: Any) -> None:
    file, other = png(7), png(8)
    name = image_id(np.full((5, 7, 3), 7, np.uint8))
    tier = DictTier({})
    await ImageStore(Limits(), 10**6, tier).open(file)
    ((key, good),) = tier.kept.items()
    canary = tmp_path / "sings"
    bomb = pickle.dumps(Canary(canary))
    # The last ones have a right checksum, and are no image, or another one.
    sealed = [
        add_checksum(key, bomb),
        add_checksum(key, file[:40]),
        add_checksum(key, other),
        add_checksum(key, b""),
    ]
    values = [*bit_flips(good, 256), *truncations(good), file, bomb, good + b"\0"]
    values += [add_checksum(f"{key}x", file), old_version(key, file), *sealed]
    for number, value in enumerate(values, start=1):
        tier.kept[key] = value
        store = ImageStore(Limits(), 10**6, tier)
        with pytest.raises(UnknownImage):
            await store.load(name, None)
        assert counted.of(CACHE_LOOKUPS, cache="image", result="corrupt") == number
        # Sent again, it is answered and the value mended.
        pixels = await (await store.open(file)).pixels()
        assert pixels[0, 0, 0] == 7
        assert tier.kept[key] == good
    assert not canary.exists()
    tier.kept[key] = good
    assert (await ImageStore(Limits(), 10**6, tier).load(name, None))[0, 0, 0] == 7


def test_the_canary_would_sing(tmp_path: Path) -> None:
    for protocol, bomb in enumerate(list(pickles(tmp_path / "sings"))[::4]):
        pickle.loads(bomb)  # noqa: S301 - what must never happen elsewhere
        assert (tmp_path / "sings").exists(), protocol
        (tmp_path / "sings").unlink()
