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


def rle_iou(a: list[Rle], b: list[Rle]) -> NDArray[np.float64]:
    """``(len(a), len(b))`` intersections over unions of masks of one size."""
    if not a or not b:
        return np.zeros((len(a), len(b)))
    as_coco = [[{"size": list(r.size), "counts": r.counts} for r in side] for side in (a, b)]
    return np.asarray(coco.iou(as_coco[0], as_coco[1], [0] * len(b)), dtype=np.float64)
