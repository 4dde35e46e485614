"""Masks of known shape."""

from __future__ import annotations

from typing import Any

import numpy as np

from serve_app.core.rle import encode_part, encode_rle, rle_area, rle_bbox
from serve_app.core.types import BoolArray, Mask


def mask_of(
    array: BoolArray, score: float = 0.9, stability_score: float = 1.0, **more: Any
) -> Mask:
    """The mask of an array ``(height, width)``."""
    rle = encode_rle(array)
    return Mask(
        rle=rle,
        score=score,
        stability_score=stability_score,
        bbox=rle_bbox(rle),
        area=rle_area(rle),
        **more,
    )


def rectangle_mask(
    box: tuple[int, int, int, int],
    score: float = 0.9,
    stability_score: float = 0.95,
    size: tuple[int, int] = (40, 60),
    **more: Any,
) -> Mask:
    """A rectangle ``(x, y, w, h)`` in an image of ``size`` (height, width)."""
    x, y, w, h = box
    if not w * h:
        return mask_of(np.zeros(size, np.bool_), score, stability_score, **more)
    rle, bbox, area = encode_part(np.ones((w, h), np.bool_), x, y, size)
    return Mask(rle=rle, score=score, stability_score=stability_score, bbox=bbox, area=area, **more)
