"""Selects prompts for a second variant, and the better of the two variants' masks.

Escalation costs one encoder pass of the second variant for the image and then little for each
prompt, so it is decided for all prompts of a request together.  A model's predicted IoU says little
about images unlike its training data: on microscopy its correlation with the true IoU may be zero.
Combined with the mask's size, its fit to the box and the spread of the three masks it is
informative.  Both rules are fitted on annotated data (`serve_tools.evaluation.cascade`) and stored
with the measurements.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from serve_app.core.measurements import Escalation, PromptType
from serve_app.core.types import Mask, Prompt

Rules = Mapping[PromptType, Escalation]


def select_for_escalation(
    prompts: Sequence[Prompt],
    results: Sequence[Sequence[Mask]],
    rules: Rules,
    *,
    share: float,
    cached: bool,
) -> list[int]:
    """Select the prompts to repeat on the second variant.

    Selects all prompts with a positive expected gain, if the mean expected gain of the request's
    prompts reaches the threshold for ``share``, or if the second variant has the image's embedding
    cached, because then the additional cost is small.

    Args:
        results: the first variant's masks of each prompt.
        rules: by prompt type; prompts of other types are not escalated.
        share: the part of images that may be encoded a second time.
        cached: the second variant has the image's embedding cached.

    Returns:
        Indices into ``prompts``, which are on one image.
    """
    gains: dict[int, float] = {}
    margin = 0.0
    for index, (prompt, masks) in enumerate(zip(prompts, results, strict=True)):
        rule = rules.get(prompt_type(prompt))
        if rule is None or not masks:
            continue
        threshold = rule.threshold(share, alone=len(prompts) == 1)
        if math.isinf(threshold):
            continue
        gains[index] = rule.gain(features(prompt, masks))
        margin += gains[index] - threshold
    if margin < 0 and not cached:
        return []
    return [index for index, gain in gains.items() if gain > 0]


def should_replace(
    prompt: Prompt, first: Sequence[Mask], second: Sequence[Mask], rules: Rules
) -> bool:
    """Whether the second variant's masks of a prompt should replace the first's."""
    rule = rules.get(prompt_type(prompt))
    if rule is None or not second:
        return False
    return rule.second(features(prompt, second)) > rule.first(features(prompt, first))


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
