"""Features of predicted masks that indicate their quality; cascades are fitted on them.

A model's predicted IoU says little about images unlike its training data: on microscopy its
correlation with the true IoU may be zero.  Combined with the mask's size, its fit to the box and
the spread of the three masks it is informative (fitted by `serve_tools.evaluation.cascade`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from serve_app.core.measurements import PromptType
from serve_app.core.types import Mask, Prompt

FEATURES = ("score", "stability", "log_share", "spread", "fit", "fill")


def prompt_type(prompt: Prompt) -> PromptType:
    """The type of a prompt; cascades have separate rules for each type."""
    if prompt.box is not None:
        return "box-3" if prompt.multimask_output else "box-1"
    return "point-3" if prompt.multimask_output else "point-1"


def best_mask(masks: Sequence[Mask]) -> Mask:
    """The mask with the highest predicted IoU."""
    return max(masks, key=lambda mask: mask.score)


def features(prompt: Prompt, masks: Sequence[Mask]) -> dict[str, float]:
    """Features of one prompt's mask with the highest predicted IoU.

    * ``score``, ``stability``: as predicted by the model;
    * ``log_share``: logarithm of the mask's share of the image;
    * ``spread``: logarithm of its area relative to the smallest mask, if there are several: large
      when the model could not distinguish a part from the whole;
    * ``fit``: IoU of the mask's bounding box with the prompt's box; ``fill``: its area relative to
      the box's.
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
