"""Memory of decoding: what is announced is enough, and what is announced together is bounded."""

from __future__ import annotations

import io
import threading
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import numpy as np
import pytest
import tifffile
from PIL import Image

from serve_app.core.errors import InvalidImage
from serve_app.core.limits import Limits
from serve_app.core.request import Reading
from serve_app.images import decode
from serve_app.images.decode import read_image
from serve_app.images.memory import MemoryBound

from .test_channels import png16

SIDE = 1_500
BESIDE = 24 * 2**20
"""Blocks, the samples of which percentiles are taken, and the file."""


def tiff(dtype: str, channels: int, **options: Any) -> Callable[[], bytes]:
    def make() -> bytes:
        buffer = io.BytesIO()
        pixels = np.zeros((SIDE, SIDE, channels)[: 2 + (channels > 1)], dtype)
        pixels[: SIDE // 2] = 50
        options.setdefault("planarconfig", "contig" if channels > 1 else None)
        tifffile.imwrite(buffer, pixels, **{"compression": "zlib", "rowsperstrip": 64, **options})
        return buffer.getvalue()

    return make


def deep_png(colour: int, channels: int) -> Callable[[], bytes]:
    def make() -> bytes:
        pixels = np.zeros((SIDE, SIDE, channels), np.uint8)
        pixels[: SIDE // 2] = 50
        return png16(pixels, colour)

    return make


def saved(mode: str, kind: str, **options: Any) -> Callable[[], bytes]:
    def make() -> bytes:
        buffer = io.BytesIO()
        Image.new(mode, (SIDE, SIDE)).save(buffer, kind, **options)
        return buffer.getvalue()

    return make


ROTATED = {"exif": b"Exif\0\0MM\0*\0\0\0\x08\0\1\1\x12\0\3\0\0\0\1\0\6\0\0\0\0\0\0"}
FILES: dict[str, tuple[Callable[[], bytes], float]] = {
    # With the bytes a pixel that NumPy's arrays may take at once.
    "float64": (tiff("f8", 1), 8 + 3),
    "float64, white is zero": (tiff("f8", 1, photometric="miniswhite"), 8 + 3),
    "RGBA, 16 bits": (tiff("u2", 4, photometric="rgb", extrasamples=["unassalpha"]), 8 + 3),
    "RGBA, premultiplied": (tiff("u2", 4, photometric="rgb", extrasamples=["assocalpha"]), 8 + 3),
    "turned": (tiff("u2", 3, photometric="rgb", extratags=[(274, 3, 1, 6, True)]), 6 + 3),
    "CMYK, 16 bits": (tiff("u2", 4, photometric="separated"), 8 + 3),
    "RGB, 8 bits": (tiff("u1", 3, photometric="rgb"), 3),
    "PNG, RGBA, 16 bits": (deep_png(6, 4), 8 + 3),
    "PNG, LA, 16 bits": (deep_png(4, 2), 4 + 1 + 3),
    "PNG, gray, 16 bits": (deep_png(0, 1), 2 + 1 + 3),
    "PNG, RGBA": (saved("RGBA", "PNG"), 3),
    "JPEG, turned": (saved("RGB", "JPEG", **ROTATED), 3),
    "gray JPEG": (saved("L", "JPEG"), 4),
}


class Announced:
    """Stands for `decode.DECODING`, and keeps what is announced."""

    def __init__(self, refuses: bool = False) -> None:
        self.needs: list[int] = []
        self._refuses = refuses

    @contextmanager
    def share(self) -> Iterator[Callable[[int], None]]:
        yield self._take

    def _take(self, nbytes: int) -> None:
        self.needs.append(nbytes)
        if self._refuses:
            raise InvalidImage("no memory is free")


def peak_of(data: bytes, channel: tuple[int, ...] = ()) -> int:
    """Bytes of Python's and NumPy's memory that reading a file takes; Pillow's are not seen."""
    tracemalloc.start()
    try:
        with suppress(InvalidImage):
            read_image(data, Limits(), Reading(channel=channel))
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.slow
@pytest.mark.parametrize("name", FILES)
def test_a_picture_needs_what_is_announced(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    make, most = FILES[name]
    data = make()
    chosen = (0, 0, 0) if "gray" in name or "float" in name else (1, 0, 0)
    for channel in ((), chosen):
        monkeypatch.setattr(decode, "DECODING", announced := Announced())
        peak = peak_of(data, channel)
        (need,) = announced.needs
        assert peak <= need + BESIDE + 2 * len(data)
        if not channel:
            assert peak <= most * SIDE**2 + BESIDE + 2 * len(data)
    # And nothing is taken before.
    monkeypatch.setattr(decode, "DECODING", Announced(refuses=True))
    assert peak_of(data) <= 3 * len(data) + 2**20


def test_work_waits_until_its_share_is_free() -> None:
    bound = MemoryBound(100)
    running: set[int] = set()
    most = 0
    lock = threading.Lock()

    def work(n: int, needed: int) -> None:
        nonlocal most
        with bound.share() as need:
            need(needed)
            with lock:
                running.add(n)
                most = max(most, sum(min(sizes[i], 100) for i in running))
            with lock:
                running.remove(n)
            if n % 3 == 0:
                raise_in_share()

    sizes = [1, 99, 100, 250, 40, 60, 7, 30] * 20
    threads = [
        threading.Thread(target=lambda n=n: contained(work, n, sizes[n])) for n in range(len(sizes))
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not any(thread.is_alive() for thread in threads)
    assert 0 < most <= 100
    assert bound._free == 100


def raise_in_share() -> None:
    raise InvalidImage("damaged")


def contained(work: Callable[..., None], *args: Any) -> None:
    with pytest.raises(InvalidImage) if args[0] % 3 == 0 else threading.Lock():
        work(*args)


def test_small_work_does_not_pass_by_large_work_that_waits() -> None:
    """Else a large image could wait for as long as smaller ones arrive."""
    bound, begun = MemoryBound(10), []
    waiting = threading.Event()

    def work(name: str, nbytes: int) -> None:
        with bound.share() as need:
            waiting.set()
            need(nbytes)
            begun.append(name)

    threads = [threading.Thread(target=work, args=one) for one in (("large", 9), ("small", 2))]
    with bound.share() as need:
        need(5)
        threads[0].start()
        waiting.wait()
        for _ in range(5_000):  # until it waits; without an end a fault would hang the test
            if bound._next.locked():
                break
            threads[0].join(0.001)
        threads[1].start()
        threads[1].join(0.2)
        assert begun == []
    for thread in threads:
        thread.join()
    assert begun == ["large", "small"]
