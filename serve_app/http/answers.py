"""What clients get, for the OpenAPI document; tests hold real answers against these models.

Members that have nothing to say are left out.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from serve_app.http.errors import ErrorBody


class Answer(BaseModel):
    model_config = ConfigDict(extra="forbid")


class RleAnswer(Answer):
    """COCO's compressed run lengths; `pycocotools.mask.decode` reads it."""

    size: tuple[int, int] = Field(description="height and width in pixels")
    counts: str


Ring = list[tuple[float, float]]


class MaskFacts(Answer):
    """What is known of a mask beside its shape."""

    score: float = Field(description="the model's own estimate of the mask's IoU")
    stability_score: float = Field(description="IoU of the mask cut at a higher and lower logit")
    bbox: tuple[int, int, int, int] = Field(description="`[x, y, w, h]` in pixels")
    area: int = Field(description="pixels")
    predicted_iou: float | None = Field(None, description="Meta's name of `score` (everything)")
    point_coords: list[tuple[float, float]] | None = Field(
        None, description="`[[x, y]]`, the grid point that gave the mask (everything)"
    )
    crop_box: tuple[int, int, int, int] | None = Field(
        None, description="`[x, y, w, h]` of the crop it was found in (everything)"
    )
    text_score: float | None = Field(None, description="score against the text, 0-1 (text)")
    label: str | None = Field(None, description="the detector's label, where it proposed this")
    low_res_logits: str | None = Field(
        None, description="base64 of 256 x 256 little-endian float16, to send as `mask_input`"
    )


class MaskAnswer(MaskFacts):
    """One mask.  `segmentation` is as `format` says: RLE, polygons with rings, or a PNG."""

    segmentation: RleAnswer | list[list[Ring]] | str


class TextFacts(Answer):
    """For a text: whether it was found; for a prompt: who answered it, if not the usual."""

    text: str | None = None
    present: bool | None = Field(None, description="false: no region reached the threshold")
    best_score: float | None = Field(None, description="of any region, told even if absent")
    variant: str | None = Field(
        None, description="who gave these masks, if not the answer's `variant` (cascade)"
    )


class ResultAnswer(TextFacts):
    """The masks of one prompt, of one text, or of everything."""

    masks: list[MaskAnswer]


class ImageFacts(Answer):
    """The image, and who worked on it."""

    image_id: str = Field(description="names the image in later requests")
    width: int = Field(description="of the upright image, pixels")
    height: int = Field(description="of the upright image, pixels")
    variant: str
    model: str
    cache: Literal["memory", "redis", "miss"] = Field(description="where the embedding was")
    timings_ms: dict[str, float] = Field(
        description="by stage; `parse` reads and checks the request, `predict` is all of the "
        "variant's work with the way to it, `embed` and `decode_masks` its parts in the replica, "
        "`model` the part of `decode_masks` in the decoder's passes, `format` makes the masks' "
        "format, `total` is from the request's first byte to the formatted masks"
    )


class EmbedAnswer(ImageFacts):
    """The image is known now: prompts on its `image_id` are quick."""


class SegmentFacts(ImageFacts):
    reason: str = Field(description="why this variant answered")
    expected_ms: float | None = Field(
        None, description="the router's estimate of the variant's time, where it was measured"
    )
    degraded: Literal[True] | None = Field(
        None, description="load or time kept a better variant from answering; see `reason`"
    )
    escalated: int | None = Field(
        None, description="prompts that a second variant was asked, where there were any"
    )
    text_engine: str | None = Field(None, description="the engine that scored (text)")
    threshold: float | None = Field(None, description="least score of an answer (text)")


class SegmentAnswer(SegmentFacts):
    """One result for each prompt or text, in the request's order; one for everything."""

    results: list[ResultAnswer]


class Geometry(Answer):
    """A GeoJSON geometry in image pixels: x to the right, y down."""

    type: Literal["Polygon", "MultiPolygon"]
    coordinates: list[Ring] | list[list[Ring]]


class FeatureProperties(MaskFacts):
    result: int = Field(description="index of the prompt or text")
    mask: int = Field(description="index of the mask in its result")
    text: str | None = None


class Feature(Answer):
    """One mask; its geometry is null if it is empty."""

    type: Literal["Feature"]
    geometry: Geometry | None
    properties: FeatureProperties


class FeatureCollectionAnswer(SegmentFacts):
    """All masks as GeoJSON, with the answer's other members beside `features`."""

    type: Literal["FeatureCollection"]
    features: list[Feature]
    results: list[TextFacts]


class NpzLine(SegmentFacts):
    """The npz format inside a batch's line."""

    results: list[TextFacts]
    npz: str = Field(description="base64 of the archive that `/v1/segment` sends")


class BatchLine(Answer):
    """A line of a batch's answer; lines come as they are ready."""

    index: int = Field(description="of the file or item, from 0")
    result: SegmentAnswer | FeatureCollectionAnswer | NpzLine | None = None
    error: ErrorBody | None = None


class Status(Answer):
    status: str


class Readiness(Status):
    in_flight: int | None = Field(None, description="requests under way (draining)")


class Models(BaseModel):
    """What is deployed."""

    model_config = ConfigDict(extra="allow")

    variants: Any = None


class ArticleHealth(Answer):
    status: Literal["healthy"]
    version: str


class ArticleAnswer(Answer):
    """The article's answer."""

    masks: list[str] = Field(description="base64 of 0/255 gray PNGs")
    scores: list[float]
    model_used: str


class ArticleFailure(Answer):
    error: str


class ArticleBatchAnswer(Answer):
    results: list[ArticleAnswer | ArticleFailure]
