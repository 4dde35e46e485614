"""Masks of prompts by the chosen variant; unsure ones may be replaced by the cascade's second."""

from __future__ import annotations

from serve_app.capabilities.prompts.wire import Prompts
from serve_app.core.capability import Capability, Context, Cost, Image, Outcome
from serve_app.core.errors import InvalidPrompt
from serve_app.core.inference import DecodeOptions
from serve_app.core.ports import TextScorer
from serve_app.core.types import PromptResult


async def cost(task: Prompts, image: Image, scorer: TextScorer | None) -> Cost:
    """As many prompts as there are; the type is that of most of them."""
    count = len(task.prompts)
    boxes = sum(prompt.box is not None for prompt in task.prompts)
    return Cost(
        prompts=(count,),
        prompt_type="box" if boxes * 2 >= count else "point",
        mixed=0 < boxes < count,
    )


async def run(task: Prompts, context: Context) -> Outcome:
    """One result for each prompt, in the request's order.

    Raises:
        InvalidPrompt: a point or box is outside of the image.
    """
    image = context.image
    for i, prompt in enumerate(task.prompts):
        try:
            prompt.check_inside(image.width, image.height)
        except InvalidPrompt as exc:
            raise exc.at(f"prompts[{i}]") from None
    masks = await context.predict(image, task.prompts, DecodeOptions())
    best = await context.escalate(task.prompts, masks)
    return Outcome(
        results=tuple(
            PromptResult(masks=of_prompt, variant=best.variant if i in best.replaced else None)
            for i, of_prompt in enumerate(best.masks)
        ),
        escalated=best.sent,
        degraded=best.degraded,
        note=best.note,
    )


CAPABILITY = Capability(task=Prompts, run=run, cost=cost)
