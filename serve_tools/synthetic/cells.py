"""Synthetic cells: crowded, blurred, faint blobs under uneven light, with exact masks.

Scenes (`serve_tools.synthetic.scenes`) are easy for any variant.  Cells are difficult, so they
distinguish variants and their confidences: touching neighbours of the same appearance, low
contrast, defocus and noise, dark on bright as well as bright on dark.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from serve_app.core.types import BoolArray, RgbArray

_FEWEST_PIXELS = 30
_TINTS = ((1.0, 1.0, 1.0), (0.55, 0.6, 1.0), (0.7, 1.0, 0.75), (1.0, 0.72, 0.85))


@dataclass(frozen=True, slots=True, eq=False)
class CellScene:
    """A synthetic image.

    Attributes:
        pixels: ``(H, W, 3) uint8`` RGB.
        masks: ``(H, W) bool``, exactly the visible pixels of each cell.
    """

    pixels: RgbArray
    masks: tuple[BoolArray, ...]


def draw_cells(seed: int, width: int = 384, height: int = 320) -> CellScene:
    """Draw cells; the same arguments give the same pixels.

    Number, size, crowding, contrast, polarity, tint, blur, light and noise differ by seed.

    Args:
        seed: of the random generator.
        width, height: of the image in pixels.
    """
    rng = np.random.default_rng([seed, 4711])
    radius = float(rng.uniform(7, 26))
    contrast = float(rng.choice([-1, 1]) * rng.uniform(0.06, 0.45))
    # Later cells cover earlier ones and shrink their masks.
    owner = np.full((height, width), -1, np.int32)
    light = np.zeros((height, width))
    for index, (x, y) in enumerate(_centres(rng, radius, width, height)):
        blob = _blob(rng, x, y, radius, width, height)
        owner[blob] = index
        light[blob] = contrast * rng.uniform(0.6, 1.3)
    light += np.where(owner >= 0, contrast, 0) * 0.35 * _smooth_noise(rng, width, height, 5.0)
    light += rng.uniform(0.02, 0.12) * _smooth_noise(rng, width, height, 70.0)
    light += 0.5 - contrast / 2
    light = np.asarray(cv2.GaussianBlur(light, (0, 0), float(rng.uniform(0.4, 2.2))), np.float64)
    light += rng.normal(0, rng.uniform(0.01, 0.05), light.shape)
    tint = np.array(_TINTS[int(rng.integers(len(_TINTS)))])
    pixels = (np.clip(light[..., None] * tint, 0, 1) * 255).astype(np.uint8)
    masks = (owner == index for index in range(int(owner.max()) + 1))
    return CellScene(pixels, tuple(mask for mask in masks if mask.sum() >= _FEWEST_PIXELS))


def _centres(
    rng: np.random.Generator, radius: float, width: int, height: int
) -> list[tuple[float, float]]:
    """Clusters of cells: around a few seeds, at distances at which neighbours touch."""
    centres: list[tuple[float, float]] = []
    apart = radius * rng.uniform(1.3, 2.4)
    for _ in range(int(rng.integers(3, 15))):
        x0, y0 = rng.uniform(0, width), rng.uniform(0, height)
        for _ in range(int(rng.integers(1, 9))):
            x, y = rng.normal((x0, y0), 2.2 * radius)
            inside = radius < x < width - radius and radius < y < height - radius
            if inside and all((x - a) ** 2 + (y - b) ** 2 > apart**2 for a, b in centres):
                centres.append((float(x), float(y)))
    return centres or [(width / 2, height / 2)]


def _blob(
    rng: np.random.Generator, x: float, y: float, radius: float, width: int, height: int
) -> BoolArray:
    """A lobed ellipse."""
    angles = np.linspace(0, 2 * np.pi, 48, endpoint=False)
    size = radius * rng.uniform(0.7, 1.25)
    around = 1 + sum(
        rng.normal(0, 0.09) * np.cos(k * angles + rng.uniform(0, 2 * np.pi)) for k in (2, 3, 4)
    )
    stretch, turn = rng.uniform(0.65, 1.0), rng.uniform(0, np.pi)
    dx, dy = size * around * np.cos(angles), size * around * stretch * np.sin(angles)
    outline = np.stack(
        [x + dx * np.cos(turn) - dy * np.sin(turn), y + dx * np.sin(turn) + dy * np.cos(turn)], 1
    )
    canvas = np.zeros((height, width), np.uint8)
    cv2.fillPoly(canvas, [np.round(outline).astype(np.int32)], 1)
    return canvas.astype(bool)


def _smooth_noise(
    rng: np.random.Generator, width: int, height: int, sigma: float
) -> NDArray[np.float64]:
    """Noise of unit deviation that changes over ``sigma`` pixels."""
    noise = cv2.GaussianBlur(rng.normal(0, 1, (height, width)), (0, 0), sigma)
    return np.asarray(noise / noise.std(), np.float64)
