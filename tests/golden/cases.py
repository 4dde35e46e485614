"""Thirty prompts on three real photographs, and how to hold answers against references.

The photographs lie in the installed scikit-image package; nothing is downloaded.  The golden
tests ask the engines in process; the tests of a served graph ask the same cases.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import skimage
import torch
from numpy.typing import NDArray
from PIL import Image
from segment_anything import SamPredictor
from segment_anything.modeling import Sam

from serve_app.core.settings import Compute
from serve_app.core.types import LOW_RES, BoolArray, Float32Array, Mask, Prompt, RgbArray

TWO_THREADS = Compute(threads=2)

PHOTOS = ("chelsea", "astronaut", "coffee")

# Centre and half size of the object that most prompts are about, in shares of the photo.
_OBJECTS = {
    "chelsea": (0.46, 0.42, 0.28, 0.33),
    "astronaut": (0.43, 0.25, 0.12, 0.15),
    "coffee": (0.50, 0.45, 0.38, 0.22),
}


@dataclass(frozen=True)
class Case:
    """One prompt on one photograph."""

    name: str
    photo: str
    prompt: Prompt


@dataclass(frozen=True)
class Reference:
    """What `segment_anything` answers: ``(M, H, W)``, ``(M,)`` and ``(M, 256, 256)``."""

    masks: BoolArray
    scores: Float32Array
    logits: Float32Array


def photo(name: str) -> RgbArray:
    """A wide, a square and a tall photograph, ``(H, W, 3) uint8`` RGB."""
    folder = Path(skimage.__file__).parent / "data"
    pixels = np.asarray(Image.open(folder / f"{name}.png").convert("RGB"))
    if name == "coffee":
        pixels = np.rot90(pixels)[:, 60:331]
    return np.ascontiguousarray(pixels)


def cases_of(name: str) -> list[Case]:
    """Ten prompts on one photograph."""
    height, width = photo(name).shape[:2]
    cx, cy, rx, ry = _OBJECTS[name]
    size = np.array([width, height])

    def at(*shares: tuple[float, float]) -> NDArray[np.float64]:
        """Points in pixels, given relative to the object: 0 its centre, 1 its border."""
        points = np.array([(cx + x * rx, cy + y * ry) for x, y in shares])
        return np.clip(points, 0.01, 0.99) * size

    inside = at((0.1, -0.2))
    few = at((0.1, -0.2), (-0.4, 0.3), (1.3, 1.3))
    many = at((0, 0), (0.3, 0.3), (-0.3, 0.4), (0.2, -0.5), (-1.4, -1.2))
    box = at((-1, -1), (1, 1)).ravel()
    wide = np.array([0, 7.25, width, height * 0.8])
    blob = _blob(cx, cy, rx, ry, width, height)
    prompts = {
        "point": Prompt(point_coords=inside, point_labels=[1]),
        "point_single": Prompt(point_coords=inside, point_labels=[1], multimask_output=False),
        "points": Prompt(point_coords=few, point_labels=[1, 1, 0]),
        "points_single": Prompt(
            point_coords=many, point_labels=[1, 1, 1, 1, 0], multimask_output=False
        ),
        "box": Prompt(box=box),
        "box_single": Prompt(box=box, multimask_output=False),
        "box_and_point": Prompt(
            box=wide, point_coords=inside, point_labels=[1], multimask_output=False
        ),
        "box_and_points": Prompt(box=box, point_coords=few, point_labels=[1, 0, 0]),
        "mask_and_point": Prompt(
            mask_input=blob, point_coords=inside, point_labels=[1], multimask_output=False
        ),
        "mask": Prompt(mask_input=blob),
    }
    return [Case(f"{name}-{kind}", name, prompt) for kind, prompt in prompts.items()]


def _blob(cx: float, cy: float, rx: float, ry: float, width: int, height: int) -> Float32Array:
    """Logits of an ellipse around the object in SAM's padded square, between -8 and 8."""
    longer = max(width, height)
    y, x = (np.mgrid[:LOW_RES, :LOW_RES] + 0.5) / LOW_RES
    x, y = x * longer / width, y * longer / height
    distance = ((x - cx) / rx) ** 2 + ((y - cy) / ry) ** 2
    return np.clip(6 * (1 - distance), -8, 8).astype(np.float32)


ALL_CASES: list[Case] = [case for name in PHOTOS for case in cases_of(name)]


def reference_answers(sam: Sam, pixels: RgbArray, prompts: Sequence[Prompt]) -> list[Reference]:
    """Each prompt's answer by `segment_anything.SamPredictor`, one by one."""
    predictor = SamPredictor(sam)
    with torch.inference_mode():
        predictor.set_image(pixels)
        answers = []
        for prompt in prompts:
            mask = None if prompt.mask_input is None else prompt.mask_input[None]
            masks, scores, logits = predictor.predict(
                point_coords=prompt.point_coords,
                point_labels=prompt.point_labels,
                box=prompt.box,
                mask_input=mask,
                multimask_output=prompt.multimask_output,
            )
            answers.append(Reference(masks, scores, logits))
    return answers


def iou(a: NDArray[Any], b: NDArray[Any]) -> float:
    """Intersection over union of two masks; 1 if both are empty."""
    union = np.logical_or(a, b).sum()
    return float(np.logical_and(a, b).sum() / union) if union else 1.0


def check_against(masks: Sequence[Mask], reference: Reference) -> None:
    """The project's promise: mask IoU of at least 0.999, scores within 1e-3."""
    assert len(masks) == len(reference.masks)
    for mask, wanted, score in zip(masks, reference.masks, reference.scores, strict=True):
        assert mask.array.shape == wanted.shape
        assert iou(mask.array, wanted) >= 0.999
        assert abs(mask.score - float(score)) <= 1e-3
        assert mask.area == mask.array.sum()
