"""Compares a variant's embeddings and masks with those of its reference on the same inputs."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from serve_app.core.geometry import mask_iou
from serve_app.core.measurements import Agreement
from serve_app.core.types import BoolArray
from serve_tools.profiling.quality import Prediction, mean_share
from serve_tools.references.families import ReferenceModel, Tensors


def parity(predictions: Sequence[Prediction], reference: ReferenceModel, seed: int) -> Agreement:
    """Compare a variant's predictions with its reference's; intervals are over images.

    Of several masks each is compared with the reference's at the same place.  Embeddings are
    compared where their tensors have the same names and shapes: by image, the cosine of the least
    similar tensor.
    """
    cosines: list[float] = []
    overlaps: list[float] = []
    images: list[int] = []
    for predicted in predictions:
        tensors, masks = reference.predict(predicted.pixels, predicted.prompts)
        cosine = least_cosine(predicted.embedding.tensors, tensors)
        cosines += [] if cosine is None else [cosine]
        for ours, theirs in zip(predicted.masks, masks, strict=True):
            overlaps.append(mean_overlap([mask.array for mask in ours], list(theirs)))
            images.append(predicted.sample.index)
    complete = len(cosines) == len(predictions)
    return Agreement(
        reference=reference.name,
        embedding_cosine=mean_share(cosines, range(len(cosines)), seed) if complete else None,
        mask_iou=mean_share(overlaps, images, seed),
    )


def least_cosine(ours: Tensors, theirs: Tensors) -> float | None:
    """The least cosine of tensors of the same name; None if names or shapes differ."""
    if ours.keys() != theirs.keys() or any(ours[n].shape != theirs[n].shape for n in ours):
        return None
    return min(_cosine(ours[n].ravel(), theirs[n].ravel()) for n in ours)


def _cosine(a: np.ndarray, b: np.ndarray) -> float:
    a, b = a.astype(np.float64), b.astype(np.float64)
    norms = float(np.linalg.norm(a) * np.linalg.norm(b))
    # Two zero vectors are equal; rounding may exceed one.
    return float(np.clip(a @ b / norms, -1, 1)) if norms else float(np.array_equal(a, b))


def mean_overlap(ours: Sequence[BoolArray], theirs: Sequence[BoolArray]) -> float:
    """Mean IoU of ``(H, W)`` masks in pairs; a mask missing on one side counts as an IoU of 0."""
    ious = [mask_iou(a, b) for a, b in zip(ours, theirs, strict=False)]
    most = max(len(ours), len(theirs))
    return sum(ious) / most if most else 1.0
