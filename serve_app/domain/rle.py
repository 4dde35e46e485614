"""COCO's compressed run lengths, the form in which masks travel through the graph."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco


@dataclass(frozen=True, slots=True)
class Rle:
    """A mask as COCO's compressed run lengths (column-major).

    Attributes:
        size: ``(height, width)`` in pixels.
        counts: the compressed counts, ASCII.
    """

    size: tuple[int, int]
    counts: bytes


def encode_rle(mask: NDArray[np.bool_]) -> Rle:
    """Encode a ``(H, W) bool`` mask."""
    encoded = coco.encode(np.asfortranarray(mask, dtype=np.uint8))
    return Rle(size=(mask.shape[0], mask.shape[1]), counts=encoded["counts"])


def decode_rle(rle: Rle) -> NDArray[np.bool_]:
    """Decode to a ``(H, W) bool`` mask."""
    decoded = coco.decode({"size": list(rle.size), "counts": rle.counts})
    return np.ascontiguousarray(decoded, dtype=np.bool_)


def rle_area(rle: Rle) -> int:
    """Number of pixels of the mask, without decoding it."""
    return int(coco.area({"size": list(rle.size), "counts": rle.counts}))


def rle_bbox(rle: Rle) -> tuple[int, int, int, int]:
    """The smallest ``(x, y, w, h)`` around the mask in pixels, zeros if it is empty."""
    x, y, w, h = coco.toBbox({"size": list(rle.size), "counts": rle.counts}).tolist()
    return int(x), int(y), int(w), int(h)


def parse_rle(size: tuple[int, int], counts: str | bytes | list[int]) -> Rle:
    """Take run lengths from outside, compressed (text) or not (a list), after checking them.

    pycocotools trusts its input: counts that do not add up read memory that is not theirs.

    Args:
        size: the ``(height, width)`` that the mask must have.
        counts: COCO's ``counts``.

    Raises:
        ValueError: the counts are malformed or do not cover ``size`` exactly.
    """
    height, width = size
    if isinstance(counts, str):
        counts = counts.encode("ascii", "replace")
    runs = _decompress(counts) if isinstance(counts, bytes) else counts
    if any(type(run) is not int or run < 0 for run in runs):
        raise ValueError("run lengths must be whole numbers, none of them negative")
    if sum(runs) != height * width:
        raise ValueError(f"run lengths do not add up to {width} x {height} pixels")
    if isinstance(counts, bytes):
        return Rle(size, counts)
    return Rle(size, coco.frPyObjects({"size": [height, width], "counts": runs}, *size)["counts"])


def _decompress(counts: bytes) -> list[int]:
    """Run lengths of COCO's text form (pycocotools, ``maskApi.c``).

    Each number is written in groups of five bits, lowest first, as characters from ``0`` on; a
    sixth bit says that more follow, and the last group's fifth bit is the sign.  From the
    fourth number on it is the difference to the one two places before.
    """
    runs: list[int] = []
    value, shift = 0, 0
    for char in counts:
        group = char - 48
        if not 0 <= group < 64 or shift > 60:
            raise ValueError("the counts hold a character or number that has no meaning")
        value |= (group & 0x1F) << shift
        shift += 5
        if group & 0x20:
            continue
        if group & 0x10:
            value -= 1 << shift
        runs.append(value + runs[-2] if len(runs) > 2 else value)
        value, shift = 0, 0
    if shift:
        raise ValueError("the counts end within a number")
    return runs
