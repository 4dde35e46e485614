"""What an answer tells of its own quality: the features that cascades are fitted on.

A model's predicted IoU alone says little on images unlike its training's: on microscopy its
correlation with the true IoU may be nil.  Together with the mask's size, its fit to the box and
the disagreement of the three masks it says a lot; `serve_tools.evaluation.cascade` fits how.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from serve_app.core.measurements import Form
from serve_app.core.types import Mask, Prompt

FEATURES = ("score", "stability", "log_share", "spread", "fit", "fill")


def form_of(prompt: Prompt) -> Form:
    """Which cascade a prompt belongs to."""
    if prompt.box is not None:
        return "box-3" if prompt.multimask_output else "box-1"
    return "point-3" if prompt.multimask_output else "point-1"


def best_mask(masks: Sequence[Mask]) -> Mask:
    """The mask with the highest predicted IoU."""
    return max(masks, key=lambda mask: mask.score)


def features(prompt: Prompt, masks: Sequence[Mask]) -> dict[str, float]:
    """Features of the answer to one prompt, of its mask with the highest predicted IoU.

    * ``score``, ``stability``: as the model has them;
    * ``log_share``: logarithm of the mask's share of the image;
    * ``spread``: logarithm of its size over that of the smallest mask, where there are several:
      large when the model could not tell a part from the whole;
    * ``fit``: IoU of the mask's extent with the box, ``fill``: its area over the box's.
    """
    best = best_mask(masks)
    height, width = best.rle.size
    found = {
        "score": best.score,
        "stability": best.stability_score,
        "log_share": math.log((best.area + 1) / (height * width)),
    }
    if len(masks) > 1:
        found["spread"] = math.log((best.area + 1) / (min(m.area for m in masks) + 1))
    if prompt.box is not None:
        x0, y0, x1, y1 = prompt.box.tolist()
        x, y, w, h = best.bbox
        inner = max(0.0, min(x + w, x1) - max(x, x0)) * max(0.0, min(y + h, y1) - max(y, y0))
        box = (x1 - x0) * (y1 - y0)
        found["fit"] = inner / (w * h + box - inner)
        found["fill"] = best.area / box
    return found
