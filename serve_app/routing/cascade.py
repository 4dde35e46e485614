"""Selects prompts for a second variant, and the better of the two variants' masks.

Escalation costs one encoder pass of the second variant for the image and then little for each
prompt, so it is decided for all prompts of a request together.  Both rules are fitted on annotated
data (`serve_tools.evaluation.cascade`) and stored with the measurements.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from serve_app.core.measurements import Escalation, PromptType
from serve_app.core.types import Mask, Prompt
from serve_app.routing.confidence import features, prompt_type

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
        prompts: prompts on one image.
        results: the first variant's masks of each prompt.
        rules: by prompt type; prompts of other types are not escalated.
        share: the part of images that may be encoded a second time.
        cached: the second variant has the image's embedding cached.

    Returns:
        Indices into ``prompts``.
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
