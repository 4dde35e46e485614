"""COCO's compressed run lengths, the encoding of masks between the graph's processes."""

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


def encode_part(
    columns: NDArray[np.bool_], x: int, y: int, size: tuple[int, int]
) -> tuple[Rle, tuple[int, int, int, int], int]:
    """Encode a mask that lies within a part of the image; the cost depends on the part's size.

    Args:
        columns: the part, ``(w, h) bool``, transposed: run lengths are column-major.
        x, y: the part's upper left pixel in the image.
        size: ``(height, width)`` of the image, which contains the part.

    Returns:
        The mask of the whole image, its ``(x, y, w, h)`` as in `rle_bbox`, and its area.
    """
    w, h = columns.shape
    height, width = size
    pad = h < height
    # A run must end with its column: the next column starts elsewhere in the image.
    flat = np.zeros(w * (h + pad) + 2, np.bool_)
    flat[1:-1].reshape(w, h + pad)[:, :h] = columns
    edges = np.flatnonzero(flat[1:] != flat[:-1])
    if not edges.size:
        counts = [height * width]
        return Rle(size, _compressed(counts, size)), (0, 0, 0, 0), 0
    column, row = np.divmod(edges, h + pad)
    ends = (column + x) * height + row + y
    lengths = np.diff(ends, prepend=0, append=height * width)
    area = int(lengths[1::2].sum())
    rows = np.flatnonzero(columns.any(axis=0))
    left, right = int(column[0]), int((edges[-1] - 1) // (h + pad))
    top, bottom = int(rows[0]), int(rows[-1])
    bbox = (x + left, y + top, right - left + 1, bottom - top + 1)
    # COCO writes no empty run at the end.
    counts = lengths.tolist() if lengths[-1] else lengths[:-1].tolist()
    return Rle(size, _compressed(counts, size)), bbox, area


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
    """Validate run lengths from a client, compressed (text) or not (a list).

    pycocotools does not check its input: wrong counts make it read out of bounds.

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
        raise ValueError("run lengths must be non-negative integers")
    if sum(runs) != height * width:
        raise ValueError(f"run lengths do not add up to {width} x {height} pixels")
    if isinstance(counts, bytes):
        return Rle(size, counts)
    return Rle(size, _compressed(runs, size))


def _compressed(runs: list[int], size: tuple[int, int]) -> bytes:
    counts: bytes = coco.frPyObjects({"size": list(size), "counts": runs}, *size)["counts"]
    return counts


def _decompress(counts: bytes) -> list[int]:
    """Run lengths of COCO's text form (pycocotools, ``maskApi.c``).

    Each number is written in groups of five bits, lowest first, as characters from ``0`` on; the
    sixth bit marks that another group follows, and the last group's fifth bit is the sign.  From
    the fourth number on, the difference to the number two places before is stored.
    """
    runs: list[int] = []
    value, shift = 0, 0
    for char in counts:
        group = char - 48
        if not 0 <= group < 64 or shift > 60:
            raise ValueError("the counts contain an invalid character or number")
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
