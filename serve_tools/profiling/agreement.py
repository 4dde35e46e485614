"""How far a variant gives what its reference gives, on the same images and prompts."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from serve_app.core.geometry import mask_iou
from serve_app.core.measurements import Agreement
from serve_app.core.types import BoolArray
from serve_app.engines.family import ReferenceModel, Tensors
from serve_tools.profiling.quality import Answered, mean_share


def agreement(answers: Sequence[Answered], reference: ReferenceModel, seed: int) -> Agreement:
    """Hold a variant's answers against its reference's; intervals are over images.

    Of several masks each is held against the reference's in the same place.  Embeddings are
    compared where their tensors have the same names and shapes: by image the cosine of the
    least alike tensor.
    """
    cosines: list[float] = []
    overlaps: list[float] = []
    images: list[int] = []
    for answered in answers:
        tensors, masks = reference.predict(answered.pixels, answered.prompts)
        cosine = least_cosine(answered.embedding.tensors, tensors)
        cosines += [] if cosine is None else [cosine]
        for ours, theirs in zip(answered.masks, masks, strict=True):
            overlaps.append(_overlap([mask.array for mask in ours], theirs))
            images.append(answered.sample.index)
    whole = len(cosines) == len(answers)
    return Agreement(
        reference=reference.name,
        embedding_cosine=mean_share(cosines, range(len(cosines)), seed) if whole else None,
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
    # Two that are zero everywhere are the same; rounding may exceed one.
    return float(np.clip(a @ b / norms, -1, 1)) if norms else float(np.array_equal(a, b))


def _overlap(ours: Sequence[BoolArray], theirs: BoolArray) -> float:
    """Mean IoU of masks in pairs; a mask that one side has not counts as none alike."""
    pairs = [mask_iou(a, b) for a, b in zip(ours, theirs, strict=False)]
    most = max(len(ours), len(theirs))
    return sum(pairs) / most if most else 1.0
