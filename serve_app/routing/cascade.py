"""Which prompts of an answer are worth asking a second variant, and whose answer is kept.

Escalating costs one encoder pass of the second variant for the image and then little for each
prompt, so it is decided for a request's prompts together; both rules are fitted on annotated
data (`serve_tools.evaluation.cascade`) and stand in the ledger.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from serve_app.core.measurements import Escalation, Form
from serve_app.core.types import Mask, Prompt
from serve_app.routing.confidence import features, form_of

Rules = Mapping[Form, Escalation]


def worth_asking(
    prompts: Sequence[Prompt],
    answers: Sequence[Sequence[Mask]],
    rules: Rules,
    *,
    share: float,
    resident: bool,
) -> list[int]:
    """Indices of the prompts to ask the second variant.

    All prompts that should gain by it, if the request's prompts on average gain as much as the
    threshold for ``share`` asks, or the second variant has the image's embedding already: then a
    prompt costs hardly anything.

    Args:
        prompts, answers: of one image; the masks of each prompt.
        rules: by form of prompt; prompts of other forms stay as they are.
        share: the part of images that may be encoded a second time.
        resident: the second variant has the image's embedding.
    """
    gains: dict[int, float] = {}
    margin = 0.0
    for index, (prompt, masks) in enumerate(zip(prompts, answers, strict=True)):
        rule = rules.get(form_of(prompt))
        if rule is None or not masks:
            continue
        threshold = rule.threshold(share, alone=len(prompts) == 1)
        if math.isinf(threshold):
            continue
        gains[index] = rule.gain(features(prompt, masks))
        margin += gains[index] - threshold
    if margin < 0 and not resident:
        return []
    return [index for index, gain in gains.items() if gain > 0]


def second_is_better(
    prompt: Prompt, first: Sequence[Mask], second: Sequence[Mask], rules: Rules
) -> bool:
    """Whether the second variant's answer to a prompt should be kept."""
    rule = rules.get(form_of(prompt))
    if rule is None or not second:
        return False
    return rule.second(features(prompt, second)) > rule.first(features(prompt, first))
