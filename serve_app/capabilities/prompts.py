"""Prompts: one object for each point set, box or earlier mask.

Unsure masks of the chosen variant may be replaced by those of the cascade's second one.
"""

from __future__ import annotations

from typing import Annotated, Any, Self

from pydantic import AfterValidator, BeforeValidator, Field, ValidationInfo
from pydantic.fields import FieldInfo

from serve_app.core.capability import Capability, Context, Cost, Image, Outcome
from serve_app.core.errors import InvalidPrompt, InvalidRequest, TooManyPrompts
from serve_app.core.inference import DecodeOptions
from serve_app.core.limits import Limits
from serve_app.core.ports import TextScorer
from serve_app.core.request import Members, Task
from serve_app.core.types import Prompt, PromptResult
from serve_app.core.wire import AtMost, as_tuple, fault

_SINGLE = ("point_coords", "point_labels", "box", "mask_input")

_WARNINGS = {
    "background_points_only": "only background points: they exclude regions and name no object; "
    "add a point with label 1, or a box",
    "normalized_coordinates": "all coordinates are 0 to 1, a single pixel at the image's corner: "
    "coordinates are in pixels, not shares of the image",
    "tiny_box": "the box is narrower or lower than one pixel of the image",
    "box_clipped": "more than half of the box lies outside the image; the part inside was used",
    "empty_mask": "a mask has no pixel: the model found no object for the prompt",
    "score_above_one": "a score is above 1, which no IoU is: it is the model's estimate",
}


def _checked(prompts: tuple[Prompt, ...], info: ValidationInfo) -> tuple[Prompt, ...]:
    if not prompts:
        raise fault(InvalidPrompt, "prompts must hold at least one prompt")
    if isinstance(info.context, Limits) and (message := _too_many_points(prompts, info.context)):
        raise fault(TooManyPrompts, message)
    return prompts


def _too_many_points(prompts: tuple[Prompt, ...], limits: Limits) -> str | None:
    points = sum(len(p.point_coords) for p in prompts if p.point_coords is not None)
    if points > limits.max_total_points:
        return f"{points} points, but the limit is {limits.max_total_points}"
    return None


class Prompts(Task):
    """Objects to segment, each given by points, a box or an earlier mask; each has its result."""

    name = "prompts"
    flat = True
    error = InvalidPrompt
    requested_by = frozenset({"prompts", *_SINGLE})

    prompts: Annotated[
        tuple[Prompt, ...],
        Field(fail_fast=True),  # one fault is reported; a thousand would hold the event loop
        AfterValidator(_checked),
        AtMost("max_prompts", "prompts"),
        BeforeValidator(as_tuple),
    ] = Field(
        description="objects to segment; each has its own result",
        examples=[[{"box": [10, 20, 200, 300]}]],
    )

    @property
    def size(self) -> int:
        return len(self.prompts)

    @classmethod
    def members(cls) -> dict[str, tuple[Any, FieldInfo]]:
        """``prompts``, or a single prompt's members; ``multimask_output`` is their default."""
        single = {name: (f.annotation, f) for name, f in Prompt.model_fields.items()}
        default: Any = Field(
            None, description="default of all prompts: three masks (`true`) or one"
        )
        return {**super().members(), **single, "multimask_output": (bool | None, default)}

    @classmethod
    def from_members(cls, members: Members, limits: Limits | None) -> Self:
        multimask = members.get("multimask_output")
        if multimask is not None and not isinstance(multimask, bool):
            raise InvalidRequest("multimask_output must be true or false", "multimask_output")
        given = [name for name in _SINGLE if name in members]
        if "prompts" not in members:
            single = {"multimask_output": multimask, **{name: members[name] for name in given}}
            return cls.parse({"prompts": (Prompt.parse(single, limits),)}, limits)
        if given:
            raise InvalidRequest("give either prompts or a single prompt's members")
        items = members["prompts"]
        if isinstance(items, list) and multimask is not None:
            items = [_with_default(item, multimask) for item in items]
        return cls.parse({"prompts": items}, limits)

    @classmethod
    def complete_form(cls, plain: dict[str, Any], members: Members) -> dict[str, Any]:
        """``[x, y]`` is one point, a number one label, and points without labels are positive."""
        completed = dict(plain)
        points, labels = plain.get("point_coords"), plain.get("point_labels")
        if isinstance(points, list) and points and not any(isinstance(p, list) for p in points):
            points = completed["point_coords"] = [points]
        if isinstance(labels, int):
            completed["point_labels"] = [labels]
        elif isinstance(points, list) and "point_labels" not in {*plain, *members}:
            completed["point_labels"] = [1] * len(points)
        return completed

    @classmethod
    def count(cls, members: Members) -> tuple[int, int]:
        prompts = members.get("prompts")
        if not isinstance(prompts, list):
            return 1, _points(members)
        return len(prompts), sum(map(_points, prompts))

    @classmethod
    def coerce(cls, value: Any) -> Self | None:
        """A `Prompt`, or a list of them."""
        if isinstance(value, Prompt):
            return cls(prompts=(value,))
        if isinstance(value, list | tuple):
            if not all(isinstance(prompt, Prompt | dict) for prompt in value):
                raise fault(
                    InvalidRequest,
                    "task as a list must hold Prompts alone: [Prompt(box=[x0, y0, x1, y1])]",
                )
            return cls(prompts=tuple(value))
        return super().coerce(value)

    def within(self, limits: Limits) -> Self:
        if message := _too_many_points(self.prompts, limits):
            raise TooManyPrompts(message, "prompts")
        return super().within(limits)


def _with_default(prompt: Any, multimask: bool) -> Any:
    if isinstance(prompt, dict) and prompt.get("multimask_output") is None:
        return {**prompt, "multimask_output": multimask}
    return prompt


def _points(prompt: Any) -> int:
    coords = prompt.get("point_coords") if isinstance(prompt, dict) else None
    return len(coords) if isinstance(coords, list) else 0


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
    image, inside = context.image, []
    for i, prompt in enumerate(task.prompts):
        try:
            clipped, codes = prompt.inside(image.width, image.height)
        except InvalidPrompt as exc:
            raise exc.at(f"prompts[{i}]") from None
        inside.append(clipped)
        for code in codes:
            context.warn(code, _WARNINGS[code], f"prompts[{i}]")
    masks = await context.predict(image, inside, DecodeOptions())
    best = await context.escalate(inside, masks)
    for i, of_prompt in enumerate(best.masks):
        if any(mask.area == 0 for mask in of_prompt):
            context.warn("empty_mask", _WARNINGS["empty_mask"], f"prompts[{i}]")
        if any(mask.score > 1 for mask in of_prompt):
            context.warn("score_above_one", _WARNINGS["score_above_one"], f"prompts[{i}]")
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
