"""Masks made up for the tests of cascade and confidence."""

from __future__ import annotations

import numpy as np

from serve_app.core.rle import encode_rle
from serve_app.core.types import Mask


def mask(
    box: tuple[int, int, int, int],
    score: float = 0.9,
    stability: float = 0.95,
    size: tuple[int, int] = (40, 60),
) -> Mask:
    """A rectangle ``(x, y, w, h)`` in an image of ``size`` (height, width)."""
    x, y, w, h = box
    array = np.zeros(size, np.bool_)
    array[y : y + h, x : x + w] = True
    return Mask(rle=encode_rle(array), score=score, stability_score=stability, bbox=box, area=w * h)
