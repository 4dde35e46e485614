"""The crop of a candidate region for a vision-language model."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image

from serve_app.core.inference import Candidate
from serve_app.core.rle import decode_rle
from serve_app.core.types import RgbArray

CONTEXT = 0.1
"""Margin on each side of the box, as a share of its longer side."""


def mean_colour(mean: Sequence[float]) -> tuple[int, int, int]:
    """The RGB colour that preprocessing with this ``mean`` (0-1) maps to zero."""
    r, g, b = (round(255 * v) for v in mean)
    return r, g, b


def masked_crop(
    pixels: RgbArray, candidate: Candidate, side: int, fill: tuple[int, int, int]
) -> RgbArray:
    """Crop a candidate on a uniform background: a ``(side, side, 3) uint8`` RGB square.

    The square is centred on the candidate's box and wider than its longer side by twice
    `CONTEXT`, so the aspect ratio is preserved.  Pixels outside the mask or the image
    are ``fill``; without a mask the surroundings stay visible.

    Args:
        pixels: ``(H, W, 3) uint8``, the upright image.
        candidate: its box, and its mask at the image's full size, if known.
        side: of the result in pixels.
        fill: RGB, best the model's `mean_colour`.
    """
    x, y, w, h = candidate.bbox
    extent = max(1, round(max(w, h) * (1 + 2 * CONTEXT)))
    left, top = round(x + w / 2 - extent / 2), round(y + h / 2 - extent / 2)
    x0, y0 = max(0, left), max(0, top)
    x1 = min(pixels.shape[1], left + extent)
    y1 = min(pixels.shape[0], top + extent)
    square = np.empty((extent, extent, 3), np.uint8)
    square[:] = fill
    if x0 < x1 and y0 < y1:
        part = pixels[y0:y1, x0:x1]
        if candidate.mask is not None:
            inside = decode_rle(candidate.mask)[y0:y1, x0:x1, None]
            part = np.where(inside, part, np.array(fill, np.uint8))
        square[y0 - top : y1 - top, x0 - left : x1 - left] = part
    resized = Image.fromarray(square).resize((side, side), Image.Resampling.BICUBIC)
    return np.asarray(resized, np.uint8)
