"""Synthetic scenes: coloured shapes on a noisy background, with exact masks and captions.

For experiments with known ground truth: training and checking the tiny
vision-language model, and evaluation.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from serve_app.core.types import BoolArray, RgbArray

COLOURS: Mapping[str, tuple[int, int, int]] = {
    "red": (205, 30, 35),
    "green": (35, 150, 55),
    "blue": (40, 75, 205),
    "yellow": (240, 215, 45),
    "orange": (240, 130, 25),
    "purple": (130, 45, 165),
    "white": (245, 245, 245),
    "black": (18, 18, 20),
}
"""Middle RGB of each colour; an object's own differs a little."""

SHAPES = ("circle", "square", "triangle", "star", "cross", "ring")

Points = NDArray[np.float64]
_SHIFT = 4  # fractional bits of OpenCV's drawing coordinates


@dataclass(frozen=True, slots=True, eq=False)
class SceneObject:
    """One object of a scene.

    Attributes:
        colour, shape: keys of `COLOURS`, one of `SHAPES`.
        mask: ``(H, W) bool``, exactly its pixels.
    """

    colour: str
    shape: str
    mask: BoolArray

    @property
    def caption(self) -> str:
        """Such as ``a red circle``."""
        return caption(self.colour, self.shape)


@dataclass(frozen=True, slots=True, eq=False)
class Scene:
    """A synthetic image.

    Attributes:
        pixels: ``(H, W, 3) uint8`` RGB.
        objects: none overlaps another, no two have the same caption.
    """

    pixels: RgbArray
    objects: tuple[SceneObject, ...]


def caption(colour: str, shape: str) -> str:
    """Such as ``an orange star``."""
    article = "an" if colour[0] in "aeiou" else "a"
    return f"{article} {colour} {shape}"


def all_captions() -> tuple[str, ...]:
    """The captions of every colour with every shape."""
    return tuple(caption(colour, shape) for colour in COLOURS for shape in SHAPES)


def draw_scene(
    seed: int, objects: int = 8, width: int = 384, height: int = 320, distractors: int = 12
) -> Scene:
    """Draw a scene; the same arguments give the same pixels.

    Args:
        seed: of the random generator.
        objects: how many, with radii of 4 to 11 % of the shorter side; fewer than 49.
        width, height: of the image in pixels.
        distractors: dull lines and specks behind the objects, which have no caption.
    """
    rng = np.random.default_rng(seed)
    pixels = _ground(rng, width, height)
    for _ in range(distractors):
        _distract(rng, pixels)
    kinds = [(colour, shape) for colour in COLOURS for shape in SHAPES]
    chosen = [kinds[i] for i in rng.permutation(len(kinds))[:objects]]
    drawn = []
    for (colour, shape), (x, y, radius) in zip(
        chosen, _places(rng, objects, width, height), strict=True
    ):
        mask = _shape_mask(rng, shape, x, y, radius, width, height)
        paint = np.array(COLOURS[colour]) + rng.normal(0, 7, 3)
        shading = rng.normal(0, 5, (int(mask.sum()), 1))
        pixels[mask] = np.clip(paint + shading, 0, 255).astype(np.uint8)
        drawn.append(SceneObject(colour, shape, mask))
    return Scene(pixels, tuple(drawn))


def _ground(rng: np.random.Generator, width: int, height: int) -> RgbArray:
    """A dull, slowly changing colour with noise."""
    corners = rng.uniform(95, 185) + rng.normal(0, 14, (3, 4, 3))
    smooth = cv2.resize(corners, (width, height), interpolation=cv2.INTER_CUBIC)
    noisy = smooth + rng.normal(0, rng.uniform(2, 10), (height, width, 3))
    return np.clip(noisy, 0, 255).astype(np.uint8)


def _distract(rng: np.random.Generator, pixels: RgbArray) -> None:
    height, width = pixels.shape[:2]
    dull = rng.uniform(70, 200) + rng.normal(0, 10, 3)
    colour = tuple(int(v) for v in np.clip(dull, 0, 255))
    start = (int(rng.integers(width)), int(rng.integers(height)))
    if rng.random() < 0.5:
        end = (int(rng.integers(width)), int(rng.integers(height)))
        cv2.line(pixels, start, end, colour, int(rng.integers(1, 4)), cv2.LINE_AA)
    else:
        axes = (int(rng.integers(2, 14)), int(rng.integers(2, 14)))
        cv2.ellipse(pixels, start, axes, float(rng.uniform(0, 180)), 0, 360, colour, cv2.FILLED)


def _places(
    rng: np.random.Generator, count: int, width: int, height: int
) -> list[tuple[float, float, float]]:
    """``count`` circles ``(x, y, radius)`` inside the image that keep a distance."""
    short = min(width, height)
    low, high = 0.04 * short, 0.11 * short
    places: list[tuple[float, float, float]] = []
    while len(places) < count:
        # Large circles may not all fit: reduce the maximum radius.
        high = max(low, high * 0.995)
        radius = rng.uniform(low, high)
        x = rng.uniform(radius + 2, width - radius - 2)
        y = rng.uniform(radius + 2, height - radius - 2)
        if all(math.hypot(x - u, y - v) > radius + r + 4 for u, v, r in places):
            places.append((x, y, radius))
    return places


def _shape_mask(
    rng: np.random.Generator,
    shape: str,
    x: float,
    y: float,
    radius: float,
    width: int,
    height: int,
) -> BoolArray:
    canvas = np.zeros((height, width), np.uint8)
    one = 1 << _SHIFT
    centre = (round(x * one), round(y * one))
    if shape in ("circle", "ring"):
        cv2.circle(canvas, centre, round(radius * one), 255, cv2.FILLED, shift=_SHIFT)
        if shape == "ring":
            hole = radius * rng.uniform(0.5, 0.65)
            cv2.circle(canvas, centre, round(hole * one), 0, cv2.FILLED, shift=_SHIFT)
    else:
        # A square far from upright would be a diamond, a cross an x.
        turn = rng.uniform(-math.pi, math.pi) if shape in ("triangle", "star") else 0.0
        turn += rng.uniform(-0.25, 0.25)
        points = _OUTLINES[shape]()
        rotation = np.array([[math.cos(turn), -math.sin(turn)], [math.sin(turn), math.cos(turn)]])
        outline = points @ rotation.T * radius + (x, y)
        cv2.fillPoly(canvas, [np.round(outline * one).astype(np.int32)], 255, shift=_SHIFT)
    return np.asarray(canvas > 0, np.bool_)


def _regular(corners: int, inner: float | None = None) -> Points:
    """Corners of a regular polygon in the unit circle, or of a star with an inner radius."""
    count = corners if inner is None else 2 * corners
    angles = np.arange(count) * (2 * math.pi / count) - math.pi / 2
    radii = np.ones(count)
    if inner is not None:
        radii[1::2] = inner
    return np.stack([np.cos(angles), np.sin(angles)], axis=1) * radii[:, None]


def _square() -> Points:
    side = math.sqrt(0.5)
    return np.array([(-side, -side), (side, -side), (side, side), (-side, side)])


def _cross() -> Points:
    a, b = 0.3, 0.95
    quarter = [(-a, -b), (a, -b), (a, -a)]
    turns = [(1, 0), (0, 1), (-1, 0), (0, -1)]
    return np.array([(c * u - s * v, s * u + c * v) for c, s in turns for u, v in quarter])


_OUTLINES: Mapping[str, Callable[[], Points]] = {
    "square": _square,
    "triangle": lambda: _regular(3),
    "star": lambda: _regular(5, 0.45),
    "cross": _cross,
}
