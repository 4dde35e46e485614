"""What clients send, as JSON; forms are turned into the same (`serve_app.http.body`).

Points and boxes are in pixels of the upright image, with Meta's names and conventions.  The
models check the form and the limits; what only numbers can tell is checked by the domain.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationInfo,
    model_validator,
)
from pydantic_core import PydanticCustomError

from serve_app.core.errors import InvalidRequest, TooManyPrompts
from serve_app.core.types import LOW_RES

Proposals = Literal["grid", "detector", "contours"]
MaskFormat = Literal["rle", "polygon", "png", "npz", "geojson"]


class Body(BaseModel):
    """Base: unknown fields are refused, nothing is coerced."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


def _at_most(limit: str, what: str) -> BeforeValidator:
    """Refuse a list longer than `Limits` allow, before anything is built from its items."""

    def check(value: Any, info: ValidationInfo) -> Any:
        bound = getattr(info.context, limit)
        if isinstance(value, list) and len(value) > bound:
            raise PydanticCustomError("too_many", f"at most {bound} {what}")
        return value

    return BeforeValidator(check)


def _within(limit: str) -> AfterValidator:
    """Refuse a number above one of `Limits`."""

    def check(value: int, info: ValidationInfo) -> int:
        bound = getattr(info.context, limit)
        if value > bound:
            raise PydanticCustomError("too_many", f"{info.field_name} is at most {bound} here")
        return value

    return AfterValidator(check)


def _short(value: str, info: ValidationInfo) -> str:
    bound = info.context.max_text_chars  # type: ignore[union-attr]
    if len(value) > bound:
        raise PydanticCustomError("too_many", f"a text has at most {bound} characters")
    return value


def _whole(value: Any) -> Any:
    """JSON has one kind of number: 1.0 is a whole number too."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


Whole = Annotated[int, BeforeValidator(_whole)]
Share = Annotated[float, Field(ge=0, le=1)]
Text = Annotated[str, Field(min_length=1), AfterValidator(_short)]
Texts = Annotated[list[Text], Field(min_length=1, fail_fast=True), _at_most("max_texts", "texts")]
Point = Annotated[list[float], Field(min_length=2, max_length=2)]
Points = Annotated[
    list[Point],
    Field(min_length=1, examples=[[[120, 80], [140, 95]]], fail_fast=True),
    _at_most("max_points", "points in a prompt"),
]
Labels = Annotated[
    list[Annotated[Whole, Field(ge=0, le=1)]],
    Field(examples=[[1, 0]], fail_fast=True),
    _at_most("max_points", "labels in a prompt"),
]
Box = Annotated[
    list[float], Field(min_length=4, max_length=4, examples=[[10, 20, 200, 300]], fail_fast=True)
]
LogitRow = Annotated[list[float], Field(min_length=LOW_RES, max_length=LOW_RES, fail_fast=True)]
Logits = Annotated[list[LogitRow], Field(min_length=LOW_RES, max_length=LOW_RES, fail_fast=True)]


class PromptBody(Body):
    """One object: points, a box, the logits of an earlier mask, or several of them."""

    point_coords: Points | None = Field(None, description="`[[x, y], …]` in image pixels")
    point_labels: Labels | None = Field(
        None, description="one for each point: 1 on the object, 0 on the background"
    )
    box: Box | None = Field(None, description="`[x0, y0, x1, y1]` in image pixels")
    mask_input: str | Logits | None = Field(
        None,
        description="low-resolution logits of an earlier answer: `low_res_logits` as it came, "
        "other base64 of 256 x 256 little-endian float16 or float32, or nested lists",
    )
    multimask_output: bool | None = Field(
        None, description="three masks to choose from, or one; default: the request's"
    )


class EverythingBody(Body):
    """Segment everything, with the parameter names of Meta's `SamAutomaticMaskGenerator`."""

    points_per_side: Annotated[Whole, Field(ge=1), _within("max_points_per_side")] = 32
    points_per_batch: Annotated[Whole, Field(ge=1, le=4096)] = 64
    pred_iou_thresh: Share = 0.88
    stability_score_thresh: Share = 0.95
    stability_score_offset: Annotated[float, Field(gt=0, le=100)] = 1.0
    box_nms_thresh: Share = 0.7
    crop_n_layers: Annotated[Whole, Field(ge=0), _within("max_crop_layers")] = 0
    crop_nms_thresh: Share = 0.7
    crop_overlap_ratio: Annotated[float, Field(ge=0, lt=1)] = 512 / 1500
    crop_n_points_downscale_factor: Annotated[Whole, Field(ge=1, le=64)] = 1
    min_mask_region_area: Annotated[Whole, Field(ge=0, le=2**31 - 1)] = 0
    proposals: Proposals = Field(
        "grid",
        description="`detector` or `contours`: candidates come from there and the grid and crop "
        "parameters are not used",
    )
    mode: Literal["fast", "exact"] = Field(
        "fast",
        description="`exact` asks at every point of the grid, as Meta's generator does; `fast` "
        "leaves out points under which the image looks as under another",
    )


class ImageBody(Body):
    """The image, for requests that bring no file: `image` or `image_id`."""

    image: str | None = Field(
        None, description="the image file as base64, or as a `data:` URL; URLs are never fetched"
    )
    image_id: Annotated[str, Field(min_length=1, max_length=128)] | None = Field(
        None, description="the `image_id` of an earlier answer, to send the image no more"
    )


class EmbedBody(ImageBody):
    """Make an image known."""

    variant: Annotated[str, Field(min_length=1, max_length=32)] = Field(
        "auto", description="`auto` or a variant of `GET /v1/models`"
    )


class SegmentBody(EmbedBody):
    """Segment an image by exactly one of `prompts`, `text` and `everything`.

    `point_coords`, `point_labels`, `box` and `mask_input` beside them are short for one prompt.
    """

    prompts: (
        Annotated[
            list[PromptBody],
            Field(min_length=1, fail_fast=True),
            _at_most("max_prompts", "prompts"),
        ]
        | None
    ) = Field(None, description="objects asked for; each has its own result")
    point_coords: Points | None = Field(None, description="of the only prompt, see `prompts`")
    point_labels: Labels | None = Field(None, description="of the only prompt, see `prompts`")
    box: Box | None = Field(None, description="of the only prompt, see `prompts`")
    mask_input: str | Logits | None = Field(None, description="of the only prompt")
    text: Text | Texts | None = Field(
        None, description="what to look for; each text has its own result", examples=["dog"]
    )
    text_threshold: Share | None = Field(
        None, description="least score of an answer; default: the engine's"
    )
    max_masks: Annotated[Whole, Field(ge=1, le=1024)] | None = Field(
        None, description="most masks of a text, best first; default 16"
    )
    proposals: Proposals | None = Field(
        None, description="source of a text's candidates; default: the engine's"
    )
    points_per_side: Annotated[Whole, Field(ge=1), _within("max_points_per_side")] | None = Field(
        None, description="of the grid, where a text's candidates come from there; default 16"
    )
    everything: bool | EverythingBody | None = Field(
        None, description="`true`, or Meta's parameters"
    )
    multimask_output: bool | None = Field(
        None, description="default of all prompts: three masks (`true`, the default) or one"
    )
    format: MaskFormat = Field(
        "rle",
        description="`rle`: COCO's compressed run lengths; `polygon`: polygons, each a list of "
        "rings, the exterior first; `png`: base64 of a 0/255 gray PNG; `geojson`: one "
        "FeatureCollection in image pixels; `npz`: NumPy's archive",
    )
    return_logits: bool = Field(
        False, description="add `low_res_logits`, base64 of 256 x 256 little-endian float16"
    )
    max_latency_ms: Annotated[float, Field(gt=0, le=1e9)] | None = Field(
        None,
        description="choose a variant that is expected to answer within this time; "
        "`hints_unmet` if none could, `overloaded` if none can at present",
    )
    min_quality: Annotated[float, Field(gt=0, le=1)] | None = Field(
        None,
        description="choose a variant that has reached at least this mean IoU (`GET /v1/models` "
        "tells them); `hints_unmet` if there is none",
    )

    @model_validator(mode="after")
    def _one_task(self) -> SegmentBody:
        """`InvalidRequest` unless there is one task, with nothing of another's."""
        single = [
            name
            for name in ("point_coords", "point_labels", "box", "mask_input")
            if getattr(self, name) is not None
        ]
        tasks = [self.prompts is not None, self.text is not None, bool(single)]
        # `everything: false` asks for nothing, like leaving it out.
        tasks.append(self.everything not in (None, False))
        if sum(tasks) != 1:
            raise InvalidRequest(
                "give exactly one of prompts (or one prompt's point_coords, box, mask_input), "
                "text and everything"
            )
        for name in ("text_threshold", "max_masks", "proposals", "points_per_side"):
            if self.text is None and getattr(self, name) is not None:
                raise InvalidRequest(f"{name} belongs to text, which is not there", name)
        if self.multimask_output is not None and self.prompts is None and not single:
            raise InvalidRequest("multimask_output belongs to prompts", "multimask_output")
        return self

    @model_validator(mode="after")
    def _few_points(self, info: ValidationInfo) -> SegmentBody:
        """`TooManyPrompts` for too many points in all prompts together."""
        points = sum(len(prompt.point_coords or ()) for prompt in self.prompts or ())
        bound = info.context.max_total_points  # type: ignore[union-attr]
        if points > bound:
            raise TooManyPrompts(f"{points} points, but the limit is {bound}", "prompts")
        return self


class BatchBody(Body):
    """Many requests in one call; a faulty one fails alone."""

    items: Annotated[list[Any], Field(min_length=1), _at_most("max_batch_images", "items")] = Field(
        description="segment requests, each with its image"
    )


FIELD_NAMES = frozenset(
    name
    for body in (PromptBody, EverythingBody, SegmentBody, BatchBody)
    for name in body.model_fields
)
"""Names that may be told as the field at fault: all others are the caller's own words."""
