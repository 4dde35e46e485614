"""COCO's compressed run lengths, the encoding of masks between the graph's processes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco

_MOST_GROUPS = 7
"""Groups of five bits in a number: 35 bits hold any run, and no sum of such runs overflows."""


Ints = NDArray[np.int64]


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
    height = size[0]
    pad = h < height
    # A run must end with its column: the next column starts elsewhere in the image.
    flat = np.zeros(w * (h + pad) + 2, np.bool_)
    flat[1:-1].reshape(w, h + pad)[:, :h] = columns
    edges = np.flatnonzero(flat[1:] != flat[:-1])
    if not edges.size:
        return rle_of(edges, size), (0, 0, 0, 0), 0
    column, row = np.divmod(edges, h + pad)
    changes = (column + x) * height + row + y
    area = int((changes[1::2] - changes[::2]).sum())
    rows = np.flatnonzero(columns.any(axis=0))
    left, right = int(column[0]), int((edges[-1] - 1) // (h + pad))
    top, bottom = int(rows[0]), int(rows[-1])
    bbox = (x + left, y + top, right - left + 1, bottom - top + 1)
    return rle_of(changes, size), bbox, area


def rle_of(changes: Ints, size: tuple[int, int]) -> Rle:
    """The mask that begins and ends at these pixels, in turn.

    Args:
        changes: flat indices along the columns, ascending; an end is the first pixel outside.
        size: ``(height, width)`` of the image.
    """
    runs = np.diff(changes, prepend=0, append=size[0] * size[1])
    # COCO writes no empty run at the end.
    return Rle(size, _compressed((runs if runs[-1] else runs[:-1]).tolist(), size))


def changes_of(rle: Rle) -> Ints:
    """The pixels at which the mask begins and ends, as `rle_of` takes them.

    A client's empty runs are left out, so no two are equal.
    """
    runs = _decompress(rle.counts)
    changes: Ints = np.cumsum(runs)
    if not runs[1:].all():
        # Around an empty run, or an even number of them, the pixels are of one kind.
        changes, times = np.unique(changes, return_counts=True)
        changes = changes[times % 2 == 1]
    pixels = rle.size[0] * rle.size[1]
    if changes.size % 2 == 0:
        return changes
    # Either no run begins at the image's end, or the last one ends there.
    return changes[:-1] if changes[-1] == pixels else np.append(changes, pixels)


def decode_rle(rle: Rle) -> NDArray[np.bool_]:
    """Decode to a ``(H, W) bool`` mask; the cost beside the zeros depends on the mask's extent."""
    part, x, y = decode_part(rle)
    mask = np.zeros(rle.size, np.bool_)
    mask[y : y + part.shape[0], x : x + part.shape[1]] = part
    return mask


def decode_part(rle: Rle) -> tuple[NDArray[np.bool_], int, int]:
    """Decode the smallest part of the image that holds the mask; the rest is never made.

    Returns:
        The part, ``(h, w) bool``, and ``x, y`` of its upper left pixel; ``(0, 0) bool`` if the
        mask is empty.
    """
    height = rle.size[0]
    changes = changes_of(rle)
    starts, ends = changes[::2], changes[1::2]
    if not starts.size:
        return np.zeros((0, 0), np.bool_), 0, 0
    first, top = np.divmod(starts, height)
    last, bottom = np.divmod(ends - 1, height)
    x, y, h = int(first[0]), 0, height
    if (first == last).all():  # else a run goes on in the next column: it has a column's both ends
        y = int(top.min())
        h = int(bottom.max()) + 1 - y
    w = int(last[-1]) + 1 - x
    bounds = np.empty(2 * len(starts), np.int64)
    bounds[::2] = (first - x) * h + top - y
    bounds[1::2] = (last - x) * h + bottom - y + 1
    lengths = np.diff(bounds, prepend=0, append=w * h)
    flat = np.repeat(np.arange(len(lengths)) % 2 == 1, lengths)
    return np.ascontiguousarray(flat.reshape(w, h).T), x, y


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
    runs = _decompress(counts).tolist() if isinstance(counts, bytes) else counts
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


def _decompress(counts: bytes) -> NDArray[np.int64]:
    """Run lengths of COCO's text form (pycocotools, ``maskApi.c``).

    Each number is written in groups of five bits, lowest first, as characters from ``0`` on; the
    sixth bit marks that another group follows, and the last group's fifth bit is the sign.  From
    the fourth number on, the difference to the number two places before is stored.
    """
    groups = np.frombuffer(counts, np.uint8).astype(np.int64) - 48
    if groups.size and not (groups.min() >= 0 and groups.max() < 64):
        raise ValueError("the counts contain an invalid character or number")
    ends = np.flatnonzero(groups & 0x20 == 0)
    if groups.size and (not ends.size or ends[-1] != groups.size - 1):
        raise ValueError("the counts end within a number")
    lengths = np.diff(ends, prepend=-1)
    if lengths.max(initial=0) > _MOST_GROUPS:
        raise ValueError("the counts contain an invalid character or number")
    if not ends.size:
        return ends
    starts = ends + 1 - lengths
    place = np.arange(groups.size) - np.repeat(starts, lengths)
    runs: NDArray[np.int64] = np.add.reduceat((groups & 0x1F) << 5 * place, starts)
    runs -= np.where(groups[ends] & 0x10, 1 << 5 * lengths, 0)
    runs[1::2] = np.cumsum(runs[1::2])
    runs[2::2] = np.cumsum(runs[2::2])
    return runs
