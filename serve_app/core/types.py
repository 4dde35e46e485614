"""The values that travel through the graph: frozen, typed, free of torch, Ray and FastAPI.

Frames and units, everywhere in this project:

* images are ``(H, W, 3) uint8`` RGB, upright (EXIF rotation applied);
* points are ``(x, y)`` and boxes ``(x0, y0, x1, y1)`` in pixels of the upright image, where
  pixel ``(i, j)`` covers ``[j, j+1) x [i, i+1)``; a result's ``bbox`` is ``(x, y, w, h)``, as
  in COCO;
* low-resolution logits are ``(256, 256)``, of the image padded to a square at the right or below,
  its longer side scaled to 256, whatever the variant's own frame is; a mask is ``logit > 0``.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from functools import cache
from typing import Annotated, Any, Literal, Self, cast

import numpy as np
from numpy.typing import NDArray
from pydantic import (
    BeforeValidator,
    Field,
    PlainSerializer,
    PlainValidator,
    SerializerFunctionWrapHandler,
    TypeAdapter,
    WithJsonSchema,
    model_serializer,
    model_validator,
)
from pydantic_core import PydanticSerializationError

from serve_app.core.errors import InternalError, InvalidPrompt
from serve_app.core.rle import Rle, decode_rle, parse_rle
from serve_app.core.wire import Array, AtMost, Base64Array, Point, Whole, Wire, fault

Float32Array = NDArray[np.float32]
Int32Array = NDArray[np.int32]
RgbArray = NDArray[np.uint8]
BoolArray = NDArray[np.bool_]

LOW_RES = 256
"""Side of SAM's low-resolution masks, in cells."""

_ROUNDING = 0.5
"""How far outside of the image a point may lie, in pixels."""

_FEW_PIXELS = 8
"""Up to this side coordinates of 0 to 1 are as likely pixels as shares of the image."""

_POINTS = Array(Annotated[list[Point], Field(min_length=1, fail_fast=True)], np.float32, (None, 2))
_LABELS = Array(
    Annotated[list[Annotated[Whole, Field(ge=0, le=1)]], Field(fail_fast=True)],
    np.int32,
    (None,),
    (0, 1),
)
_BOX = Array(
    Annotated[list[float], Field(min_length=4, max_length=4, fail_fast=True)], np.float32, (4,)
)
_FEW_POINTS = AtMost("max_points", "points in a prompt")
_FEW_LABELS = AtMost("max_points", "labels in a prompt")
_ROW = Annotated[list[float], Field(min_length=LOW_RES, max_length=LOW_RES, fail_fast=True)]
_LOGITS = Base64Array(
    str | Annotated[list[_ROW], Field(min_length=LOW_RES, max_length=LOW_RES, fail_fast=True)],
    np.float32,
    (LOW_RES, LOW_RES),
)


class CacheTier(StrEnum):
    """Where an image's embedding came from."""

    MEMORY = "memory"
    REDIS = "redis"
    MISS = "miss"


class ProposalSource(StrEnum):
    """Where candidate regions come from."""

    GRID = "grid"
    DETECTOR = "detector"
    CONTOURS = "contours"


def _default(value: Any) -> Any:
    return True if value is None else value


def _one_box(value: Any) -> Any:
    if isinstance(value, list) and value and isinstance(value[0], list):
        several = 'for several boxes use prompts: [{"box": …}, …]'
        raise fault(InvalidPrompt, f"box is one box, [x0, y0, x1, y1]; {several}")
    return value


class Prompt(Wire):
    """One object to segment: points, a box, the logits of an earlier mask, or several of them.

    Coordinates are in pixels of the upright image.

    Attributes:
        point_coords: ``(N, 2) float32``, ``(x, y)``.
        point_labels: ``(N,) int32``, 1 on the object, 0 on the background.
        box: ``(4,) float32``, ``(x0, y0, x1, y1)``.
        mask_input: ``(256, 256) float32`` low-resolution logits of an earlier mask, of any
            variant: see this module's frames.
        multimask_output: return three masks from which to choose instead of one; None stands for
            the default, three.

    Raises:
        InvalidPrompt: wrong shapes, labels that do not match, NaN, an empty box, no prompt.
    """

    error = InvalidPrompt

    point_coords: Annotated[Float32Array, _POINTS, _FEW_POINTS] | None = Field(
        None, description="`[[x, y], …]` in image pixels", examples=[[[120, 80], [140, 95]]]
    )
    point_labels: Annotated[Int32Array, _LABELS, _FEW_LABELS] | None = Field(
        None,
        description="one for each point: 1 on the object, 0 on the background",
        examples=[[1, 0]],
    )
    box: Annotated[Annotated[Float32Array, _BOX] | None, BeforeValidator(_one_box)] = Field(
        None, description="`[x0, y0, x1, y1]` in image pixels", examples=[[10, 20, 200, 300]]
    )
    mask_input: Annotated[Float32Array, _LOGITS] | None = Field(
        None,
        description="low-resolution logits of an earlier mask: `low_res_logits` as it came, other "
        "base64 of 256 x 256 little-endian float16 or float32, or nested lists",
    )
    multimask_output: Annotated[bool, BeforeValidator(_default)] = Field(
        True, description="three masks to choose from, or one; null: three"
    )

    __eq__ = object.__eq__
    __hash__ = object.__hash__

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        coords, labels, box = self.point_coords, self.point_labels, self.box
        message, field = "", "point_labels"
        if coords is None and labels is not None:
            message = "point_labels require point_coords"
        elif coords is not None and labels is None:
            message = "point_coords require point_labels, one each"
        elif coords is not None and labels is not None and len(coords) != len(labels):
            message = f"{len(coords)} point_coords but {len(labels)} point_labels"
        elif box is not None and not (box[0] < box[2] and box[1] < box[3]):
            message, field = "box must be [x0, y0, x1, y1] with x0 < x1 and y0 < y1", "box"
        elif coords is None and box is None and self.mask_input is None:
            message, field = "a prompt needs point_coords, a box or a mask_input", ""
        if message:
            raise fault(InvalidPrompt, message, field)
        return self

    @property
    def only_background(self) -> bool:
        """Whether all that it says is where the object is not."""
        points = self.point_labels is not None and not self.point_labels.any()
        return points and self.box is None and self.mask_input is None

    def inside(self, width: int, height: int) -> tuple[Prompt, list[str]]:
        """This prompt, clipped to an image, and the codes of the warnings that it deserves.

        A box may reach over the border (a detector's often do) if a part of it is inside; a point
        may lie up to half a pixel outside, on any side, as rounding puts it.  No model sees either.

        Raises:
            InvalidPrompt: a point, or all of the box, lies outside the image.
        """
        outside = f"lies outside the image of {width} x {height} pixels"
        points, box = self.point_coords, self.box
        corners: list[float] = []
        clipped: dict[str, Float32Array] = {}
        codes = ["background_points_only"] if self.only_background else []
        if points is not None:
            # As Python's floats: a request may have a thousand prompts.
            corners = [*points.min(axis=0).tolist(), *points.max(axis=0).tolist()]
            x0, y0, x1, y1 = corners
            if min(x0, y0) < -_ROUNDING or x1 > width + _ROUNDING or y1 > height + _ROUNDING:
                raise InvalidPrompt(f"a point {outside}", "point_coords")
            if min(x0, y0) < 0 or x1 > width or y1 > height:
                clipped["point_coords"] = points.clip(0, np.array([width, height], np.float32))
        if box is not None:
            x0, y0, x1, y1 = box.tolist()
            corners += [x0, y0, x1, y1]
            left, top, right, bottom = max(x0, 0.0), max(y0, 0.0), min(x1, width), min(y1, height)
            w, h = right - left, bottom - top
            if w <= 0 or h <= 0:
                raise InvalidPrompt(f"the box {outside}", "box")
            if w * h * 2 < (x1 - x0) * (y1 - y0):
                codes.append("box_clipped")
            if min(w, h) < 1:
                codes.append("tiny_box")
            if (left, top, right, bottom) != (x0, y0, x1, y1):
                clipped["box"] = np.array([left, top, right, bottom], np.float32)
        if max(width, height) > _FEW_PIXELS and _look_normalized(corners, box is not None):
            codes.append("normalized_coordinates")
        for array in clipped.values():
            array.flags.writeable = False
        return self.model_copy(update=clipped) if clipped else self, codes


def _look_normalized(coordinates: list[float], with_box: bool) -> bool:
    """Whether all are 0 to 1; points of whole numbers are taken for pixels."""
    if not coordinates or min(coordinates) < 0 or max(coordinates) > 1:
        return False
    return with_box or not all(value.is_integer() for value in coordinates)


def _finite(value: float) -> float:
    if not math.isfinite(value):
        raise ValueError("the model gave a number that is not finite")
    return float(value)


def _whole_numbers(box: Iterable[int]) -> tuple[int, ...]:
    return tuple(int(value) for value in box)


def _if_given(description: str | None = None) -> Any:
    """A member that is left out of JSON while it is None."""
    return Field(description=description, exclude_if=lambda value: value is None)


def _if_any(description: str) -> Any:
    """A member that is left out of JSON while it is false or zero."""
    return Field(description=description, exclude_if=lambda value: not value)


def _rounded(value: float) -> float:
    return round(value, 1)


def _rle_json(rle: Rle) -> dict[str, Any]:
    return {"size": list(rle.size), "counts": rle.counts.decode("ascii")}


def _rle_of_json(value: Any) -> Rle:
    if isinstance(value, Rle):
        return value
    height, width = value["size"]
    return parse_rle((height, width), value["counts"])


def _logits_json(logits: NDArray[np.float16]) -> str:
    return base64.b64encode(logits.astype("<f2").tobytes()).decode("ascii")


def _logits_of_json(value: Any) -> NDArray[np.float16]:
    if isinstance(value, np.ndarray):
        return value
    values = np.frombuffer(base64.b64decode(value), "<f2").astype(np.float16)
    return values.reshape(LOW_RES, LOW_RES)


_Number = Annotated[float, PlainSerializer(_finite, return_type=float)]
_Xywh = Annotated[
    tuple[int, int, int, int],
    PlainSerializer(_whole_numbers, return_type=tuple[int, int, int, int]),
]
_Ring = list[tuple[float, float]]


_RLE_SCHEMA = {
    "type": "object",
    "description": "COCO's compressed run lengths; `pycocotools.mask.decode` reads it",
    "properties": {
        "size": {"type": "array", "items": {"type": "integer"}, "description": "`[height, width]`"},
        "counts": {"type": "string"},
    },
    "required": ["size", "counts"],
    "additionalProperties": False,
}
_JsonRle = Annotated[dict[str, Any], WithJsonSchema(_RLE_SCHEMA)]
_Segmentation = Annotated[
    Rle,
    PlainValidator(_rle_of_json, json_schema_input_type=_JsonRle),
    PlainSerializer(_rle_json, return_type=_JsonRle | list[list[_Ring]] | str),
]
_Logits = Annotated[
    NDArray[np.float16],
    PlainValidator(_logits_of_json, json_schema_input_type=str),
    PlainSerializer(_logits_json, return_type=str),
]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Mask:
    """One mask of the upright image.

    In JSON ``rle`` is ``segmentation``, in the form that the request's ``format`` names.

    Attributes:
        rle: the mask itself; `array` decodes it.
        score: the model's own estimate of the mask's IoU, 0-1.
        low_res_logits: ``(256, 256) float16``, on request; in the frame of `Prompt.mask_input`.
        text_score: calibrated, 0-1.
    """

    rle: Annotated[_Segmentation, Field(alias="segmentation")]
    score: Annotated[_Number, Field(description="the model's own estimate of the mask's IoU")]
    stability_score: Annotated[
        _Number, Field(description="IoU of the mask thresholded at a higher and a lower logit")
    ]
    bbox: Annotated[_Xywh, Field(description="`[x, y, w, h]` in pixels; zeros if empty")]
    area: Annotated[int, PlainSerializer(int, return_type=int), Field(description="pixels")]
    predicted_iou: Annotated[
        _Number | None,
        _if_given("Meta's name of `score` (everything)"),
    ] = None
    low_res_logits: Annotated[
        _Logits | None,
        _if_given(
            "base64 of 256 x 256 little-endian float16, to send as `mask_input` to any variant"
        ),
    ] = None
    point_coords: Annotated[
        tuple[tuple[float, float]] | None,
        _if_given("`[[x, y]]`, the grid point that gave the mask (everything)"),
    ] = None
    crop_box: Annotated[
        _Xywh | None, _if_given("`[x, y, w, h]` of the crop it was found in (everything)")
    ] = None
    text_score: Annotated[_Number | None, _if_given("score against the text, 0-1 (text)")] = None
    label: Annotated[str | None, _if_given("the detector's label, where it proposed this")] = None

    @property
    def array(self) -> BoolArray:
        """The mask as ``(H, W) bool``, decoded anew at each call."""
        return decode_rle(self.rle)


@dataclass(frozen=True, slots=True, kw_only=True)
class UnknownText:
    """Why the text engine cannot say whether a text is in the image."""

    reason: Annotated[str, Field(description="stable, see docs/http.md")]
    message: Annotated[str, Field(description="one sentence for people")]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PromptResult:
    """The masks of one prompt, of one text, or of everything.

    Attributes:
        masks: best first for text and "everything"; in the model's order for a prompt.
        present: None for a text that is `unknown`, and for what is no text.
    """

    masks: tuple[Mask, ...]
    text: Annotated[str | None, _if_given()] = None
    present: Annotated[
        bool | None,
        Field(
            description="true: found; false: no region reached the threshold; null: the engine "
            "cannot say, see `unknown` (text)"
        ),
    ] = None
    unknown: Annotated[
        UnknownText | None, _if_given("why `present` is null: the text was not looked for (text)")
    ] = None
    best_score: Annotated[
        _Number | None, _if_given("of any region, reported even below the threshold (text)")
    ] = None
    variant: Annotated[
        str | None,
        _if_given("the variant that produced the masks, if not the response's `variant`"),
    ] = None

    @model_serializer(mode="wrap")
    def _json(self, as_json: SerializerFunctionWrapHandler):  # type: ignore[no-untyped-def]
        """Leaves out ``present`` where there is no text; unannotated, or the schema is lost."""
        body = as_json(self)
        if self.text is None and body.get("present", True) is None:
            del body["present"]
        return body


@dataclass(frozen=True, slots=True, kw_only=True)
class ResponseWarning:
    """Something about a request that was served, but may not be what the caller meant."""

    code: Annotated[str, Field(description="stable, see docs/http.md")]
    message: Annotated[str, Field(description="one sentence for people")]
    field: Annotated[str | None, _if_given("the first member that it is about")] = None
    count: Annotated[int, Field(description="how many members it is about")] = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class PixelSize:
    """The size of one pixel, as the file states it."""

    x: float
    y: float
    unit: Annotated[str, Field(description="such as `um`")]


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageInfo:
    """What was found in a file, and what was made of it."""

    format: Annotated[str, Field(description="of the file")]
    pages: Annotated[int, Field(description="in the file, without thumbnails and masks")]
    page: Annotated[int, Field(description="the one that was used, from 0")]
    channels: Annotated[
        int,
        Field(
            description="of that page as it is shown: one of gray or three of colours, then those "
            "beside them; transparency is one"
        ),
    ]
    channel: Annotated[
        tuple[int, ...], Field(description="the channels that were used, from 0: gray, or RGB")
    ]
    dtype: Annotated[str, Field(description="of its samples, such as `uint16` or `float32`")]
    bit_depth: Annotated[int, Field(description="of its samples")]
    scaling: Annotated[
        Literal["none", "image", "channel"],
        Field(
            description="how samples were scaled to 8 bits; `none`: they have 8 bits, or are inks"
        ),
    ]
    pixel_size: Annotated[PixelSize | None, _if_given("as the file states it")] = None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class EmbedResult:
    """The response to an embed call: the image is known by ``image_id`` from now on."""

    image_id: Annotated[
        str, Field(description="names the image in later requests; content-addressed")
    ]
    width: Annotated[int, Field(description="of the upright image, pixels")]
    height: Annotated[int, Field(description="of the upright image, pixels")]
    variant: Annotated[str, Field(description="the variant that produced the response")]
    model: Annotated[str, Field(description="the registry's name of the model behind it")]
    cache: Annotated[CacheTier, Field(description="where the embedding was")]
    timings_ms: Annotated[
        Mapping[str, float],
        Field(
            description="by stage; `parse` reads and checks the request, `predict` is all of the "
            "variant's work with the round trip to it, `embed` and `decode_masks` its parts in the "
            "replica, `model` the part of `decode_masks` in the decoder's passes, `format` makes "
            "the masks' format, `total` is from the request's first byte to the formatted masks"
        ),
    ]
    warnings: Annotated[
        tuple[ResponseWarning, ...],
        _if_any("what may not be as the caller meant it; one for each code"),
    ] = ()
    image: Annotated[
        ImageInfo | None,
        _if_given(
            "what was found in the file, where it has several pages or channels other than RGB, "
            "samples of more than 8 bits, or `page`, `channel` or `scaling` were given"
        ),
    ] = None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SegmentResult(EmbedResult):
    """The response to a `SegmentRequest`.

    Attributes:
        results: one for each prompt or text, in the request's order; one for "everything"; of
            another type for capabilities that give no masks.
    """

    results: tuple[Any, ...]
    reason: Annotated[str, Field(description="why this variant was chosen")]
    text_engine: Annotated[str | None, _if_given("the engine that scored (text)")] = None
    threshold: Annotated[_Number | None, _if_given("minimum score of a mask (text)")] = None
    expected_ms: Annotated[
        Annotated[float, PlainSerializer(_rounded, return_type=float)] | None,
        _if_given("the router's estimate of the variant's time, where it was measured"),
    ] = None
    degraded: Annotated[
        bool, _if_any("a better variant was not used because of load or time; see `reason`")
    ] = False
    escalated: Annotated[
        int, _if_any("prompts that were also sent to the cascade's second variant")
    ] = 0


@cache
def adapter(kind: Any) -> TypeAdapter[Any]:
    """Reads and writes the JSON form of a result type."""
    return TypeAdapter(kind)


def dumped(value: Any, *, include: Any = None, exclude: Any = None) -> dict[str, Any]:
    """A result as a JSON-like object.

    Raises:
        InternalError: it holds a number that is not finite, which JSON cannot express.
    """
    writer = adapter(cast(Hashable, type(value)))
    try:
        found: dict[str, Any] = writer.dump_python(
            value, mode="json", by_alias=True, include=include, exclude=exclude
        )
    except PydanticSerializationError as exc:
        raise InternalError("the model gave a number that is not finite") from exc
    return found
