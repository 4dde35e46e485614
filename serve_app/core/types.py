"""The values that travel through the graph: frozen, typed, free of torch, Ray and FastAPI.

Frames and units, everywhere in this project:

* images are ``(H, W, 3) uint8`` RGB, upright (EXIF rotation applied);
* points are ``(x, y)`` and boxes ``(x0, y0, x1, y1)`` in pixels of the upright image, where
  pixel ``(i, j)`` covers ``[j, j+1) x [i, i+1)``; a result's ``bbox`` is ``(x, y, w, h)``, as
  in COCO;
* low-resolution logits are ``(256, 256)``, of the image padded to a square as SAM sees it; a
  mask is ``logit > 0``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from math import inf, isfinite
from numbers import Integral
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from serve_app.core.errors import InvalidPrompt, InvalidRequest
from serve_app.core.rle import Rle, decode_rle

Float32Array = NDArray[np.float32]
Int32Array = NDArray[np.int32]
RgbArray = NDArray[np.uint8]
BoolArray = NDArray[np.bool_]

LOW_RES = 256
"""Side of SAM's low-resolution masks, in cells."""

_FAST_SHARE = 3 / 8
"""Most points of a grid that the fast mode of "everything" asks at."""

_FEW_POINTS = 256
"""Of grids of up to so many points all may be asked at, if the image differs under all."""

_LARGEST = 1e9
"""Greatest number of a prompt: from some 1e30 on, finite input becomes NaN inside the model."""


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


class EverythingMode(StrEnum):
    """How thoroughly `Everything` asks."""

    FAST = "fast"
    EXACT = "exact"


def _frozen(array: Any, dtype: Any, shape: tuple[int | None, ...], name: str) -> NDArray[Any]:
    """``array`` as a read-only copy of ``dtype``, checked against ``shape`` (None: any)."""
    try:
        with np.errstate(invalid="ignore"):
            value = np.array(array, dtype=np.float64)
    except (TypeError, ValueError) as exc:
        raise InvalidPrompt(f"{name} must hold numbers only", name) from exc
    expected = " x ".join("N" if n is None else str(n) for n in shape)
    if value.ndim != len(shape) or any(
        n is not None and n != m for n, m in zip(shape, value.shape, strict=True)
    ):
        raise InvalidPrompt(f"{name} must have the shape {expected}", name)
    if not np.isfinite(value).all():
        raise InvalidPrompt(f"{name} must not hold NaN or infinite numbers", name)
    if value.size and np.abs(value).max() > _LARGEST:
        raise InvalidPrompt(f"{name} holds a number out of range", name)
    result = value.astype(dtype)
    result.flags.writeable = False
    return result


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Prompt:
    """One object asked for, in SAM's own terms.

    Attributes:
        point_coords: ``(N, 2) float32``, ``(x, y)`` in image pixels.
        point_labels: ``(N,) int32``, 1 on the object, 0 on the background.
        box: ``(4,) float32``, ``(x0, y0, x1, y1)`` in image pixels.
        mask_input: ``(256, 256) float32`` low-resolution logits of an earlier answer.
        multimask_output: answer three masks from which to choose instead of one.

    Raises:
        InvalidPrompt: wrong shapes, labels that do not match, NaN, an empty box, no prompt.
    """

    point_coords: Float32Array | None = None
    point_labels: Int32Array | None = None
    box: Float32Array | None = None
    mask_input: Float32Array | None = None
    multimask_output: bool = True

    def __post_init__(self) -> None:
        put = object.__setattr__
        if self.point_coords is not None:
            coords = _frozen(self.point_coords, np.float32, (None, 2), "point_coords")
            if len(coords) == 0:
                raise InvalidPrompt("point_coords must hold at least one point", "point_coords")
            if self.point_labels is None:
                raise InvalidPrompt("point_coords need point_labels, one each", "point_labels")
            labels = _frozen(self.point_labels, np.float64, (None,), "point_labels")
            if len(labels) != len(coords):
                raise InvalidPrompt(
                    f"{len(coords)} point_coords but {len(labels)} point_labels", "point_labels"
                )
            if not np.isin(labels, (0, 1)).all():
                raise InvalidPrompt(
                    "point_labels must be 1 (on the object) or 0 (background)", "point_labels"
                )
            put(self, "point_coords", coords)
            put(self, "point_labels", _frozen(labels, np.int32, (None,), "point_labels"))
        elif self.point_labels is not None:
            raise InvalidPrompt("point_labels come without point_coords", "point_labels")
        if self.box is not None:
            box = _frozen(self.box, np.float32, (4,), "box")
            if not (box[0] < box[2] and box[1] < box[3]):
                raise InvalidPrompt("box must be [x0, y0, x1, y1] with x0 < x1 and y0 < y1", "box")
            put(self, "box", box)
        if self.mask_input is not None:
            mask = _frozen(self.mask_input, np.float32, (LOW_RES, LOW_RES), "mask_input")
            put(self, "mask_input", mask)
        if self.point_coords is None and self.box is None and self.mask_input is None:
            raise InvalidPrompt("a prompt needs point_coords, a box or a mask_input")

    def check_inside(self, width: int, height: int) -> None:
        """Raise `InvalidPrompt` unless all points, and a part of the box, lie in the image.

        A box may reach over the border (a detector's often do) but not lie outside.
        """
        if self.point_coords is not None:
            x, y = self.point_coords[:, 0], self.point_coords[:, 1]
            if (x < 0).any() or (y < 0).any() or (x > width).any() or (y > height).any():
                raise InvalidPrompt(
                    f"a point lies outside the image of {width} x {height} pixels", "point_coords"
                )
        if self.box is not None:
            x0, y0, x1, y1 = self.box.tolist()
            if x1 <= 0 or y1 <= 0 or x0 >= width or y0 >= height:
                raise InvalidPrompt(
                    f"the box lies outside the image of {width} x {height} pixels", "box"
                )


@dataclass(frozen=True, slots=True, kw_only=True)
class TextQuery:
    """Find the objects that a text names; one `PromptResult` for each text.

    Attributes:
        texts: what to look for, each a word or a short description.
        threshold: least calibrated score (0-1) of an answer; None: the engine's documented one.
        max_masks: most masks answered for each text, best first.
        proposals: where candidate regions come from (`ProposalSource`); None: the engine's own.
        points_per_side: of the grid, where that is the source.
    """

    texts: tuple[str, ...]
    threshold: float | None = None
    max_masks: int = 16
    proposals: ProposalSource | None = None
    points_per_side: int = 16

    def __post_init__(self) -> None:
        if not self.texts or any(not t.strip() for t in self.texts):
            raise InvalidRequest("text must hold at least one text, none of them empty", "text")
        if self.threshold is not None and not 0 <= self.threshold <= 1:
            raise InvalidRequest("text_threshold must lie between 0 and 1", "text_threshold")
        if self.max_masks < 1:
            raise InvalidRequest("max_masks must be at least 1", "max_masks")
        if self.points_per_side < 1:
            raise InvalidRequest("points_per_side must be at least 1", "points_per_side")


@dataclass(frozen=True, slots=True, kw_only=True)
class Everything:
    """Segment everything, with the parameter names of Meta's ``SamAutomaticMaskGenerator``.

    ``points_per_batch`` bounds how many prompts are under way at once.  ``proposals`` and
    ``mode`` add to Meta's:

    * with ``detector`` or ``contours`` the candidates come from there and the grid and crop
      parameters are not used;
    * ``exact`` asks at every point of the grid and answers as Meta's generator does; ``fast``
      leaves out points under which the image looks as under another one, which would give the
      same masks again (`prompts_of_grid`).  All else is the same.
    """

    points_per_side: int = 32
    points_per_batch: int = 64
    pred_iou_thresh: float = 0.88
    stability_score_thresh: float = 0.95
    stability_score_offset: float = 1.0
    box_nms_thresh: float = 0.7
    crop_n_layers: int = 0
    crop_nms_thresh: float = 0.7
    crop_overlap_ratio: float = 512 / 1500
    crop_n_points_downscale_factor: int = 1
    min_mask_region_area: int = 0
    proposals: ProposalSource = ProposalSource.GRID
    mode: EverythingMode = EverythingMode.FAST

    def __post_init__(self) -> None:
        least = {
            "points_per_side": 1,
            "points_per_batch": 1,
            "crop_n_layers": 0,
            "crop_n_points_downscale_factor": 1,
            "min_mask_region_area": 0,
        }
        for name, bound in least.items():
            value = getattr(self, name)
            if not isinstance(value, Integral) or value < bound:
                raise InvalidRequest(f"{name} must be a whole number of at least {bound}", name)
        for name in (
            "pred_iou_thresh",
            "stability_score_thresh",
            "box_nms_thresh",
            "crop_nms_thresh",
        ):
            if not 0 <= getattr(self, name) <= 1:
                raise InvalidRequest(f"{name} must lie between 0 and 1", name)
        if not 0 < self.stability_score_offset < float("inf"):
            raise InvalidRequest("stability_score_offset must be above 0", "stability_score_offset")
        if not 0 <= self.crop_overlap_ratio < 1:
            raise InvalidRequest(
                "crop_overlap_ratio must be at least 0 and below 1", "crop_overlap_ratio"
            )
        if self.mode not in set(EverythingMode):
            raise InvalidRequest("mode must be fast or exact", "mode")

    def prompts_of_grid(self, points_per_side: int) -> int:
        """How many points of a grid are prompted for at most."""
        points = points_per_side**2
        if self.mode == EverythingMode.EXACT:
            return points
        return min(points, max(_FEW_POINTS, round(points * _FAST_SHARE)))


Task = Sequence[Prompt] | TextQuery | Everything


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SegmentRequest:
    """One request, the same for HTTP and for Python handles.

    Attributes:
        image: a file's bytes, an upright ``(H, W, 3) uint8`` RGB array, or the ``image_id`` of
            an earlier answer.
        task: a list of `Prompt`, a `TextQuery`, or `Everything`.
        variant: ``auto`` or the name of a deployed variant.
        return_logits: fill `Mask.low_res_logits`, to be sent back as a ``mask_input``.
        max_latency_ms: choose a variant that is expected to answer within this time; refused
            where none can.
        min_quality: choose a variant with at least this mean IoU (0-1) on the ledger's data;
            refused where there is none.
        timeout_s: the caller goes away after this time: work for it then stops.

    Raises:
        InvalidRequest: a hint out of its range.
    """

    image: bytes | RgbArray | str
    task: Task
    variant: str = "auto"
    return_logits: bool = False
    max_latency_ms: float | None = None
    min_quality: float | None = None
    timeout_s: float | None = None

    def __post_init__(self) -> None:
        for name, most in (("max_latency_ms", inf), ("min_quality", 1.0), ("timeout_s", inf)):
            value = getattr(self, name)
            if value is not None and not (0 < value <= most and isfinite(value)):
                bound = "" if most == inf else f" and at most {most:g}"
                raise InvalidRequest(f"{name} must be above 0{bound}", name)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Mask:
    """One mask of the upright image.

    Attributes:
        rle: the mask itself; `array` decodes it.
        score: the model's own estimate of the mask's IoU (``predicted_iou``).
        stability_score: IoU of the mask cut at logits +1 and -1 (`Everything`'s offset).
        bbox: ``(x, y, w, h)`` in pixels, the smallest box around the mask; zeros if empty.
        area: number of pixels.
        low_res_logits: ``(256, 256) float16``, when asked for.
        point_coords: ``(x, y)`` of the grid point that gave it (`Everything` alone).
        crop_box: ``(x, y, w, h)`` of the crop it was found in (`Everything` alone).
        text_score: calibrated score against the text, 0-1 (`TextQuery` alone).
        label: the detector's label, where a detector proposed it.
    """

    rle: Rle
    score: float
    stability_score: float
    bbox: tuple[int, int, int, int]
    area: int
    low_res_logits: NDArray[np.float16] | None = None
    point_coords: tuple[float, float] | None = None
    crop_box: tuple[int, int, int, int] | None = None
    text_score: float | None = None
    label: str | None = None

    @property
    def array(self) -> BoolArray:
        """The mask as ``(H, W) bool``, decoded anew at each call."""
        return decode_rle(self.rle)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PromptResult:
    """The answer to one prompt, one text, or "everything".

    Attributes:
        masks: best first for text and "everything"; in the model's order for a prompt.
        text: the text this answers.
        present: False when no region reached the threshold (text alone).
        best_score: the best calibrated score of any region, told even if absent (text alone).
        variant: who gave the masks, where it is not the answer's `SegmentResult.variant`.
    """

    masks: tuple[Mask, ...]
    text: str | None = None
    present: bool | None = None
    best_score: float | None = None
    variant: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SegmentResult:
    """The answer to a `SegmentRequest`.

    Attributes:
        image_id: names the image in later requests; content-addressed, not guessable.
        width, height: of the upright image in pixels.
        results: one for each prompt or text, in the request's order; one for "everything".
        variant: the variant that answered; ``reason`` says why it was chosen.
        model: the registry's name of the model behind it.
        cache: the tier that held the embedding.
        timings_ms: milliseconds by stage (``decode_image``, ``embed``, ``decode_masks``, ...).
        text_engine: the scoring engine that was used (text alone).
        threshold: the least calibrated score of an answer (text alone).
        expected_ms: the router's estimate of the variant's time; None: not measured here.
        degraded: load or time kept a better variant from (also) answering; see ``reason``.
        escalated: how many prompts were asked again of the cascade's second variant.
    """

    image_id: str
    width: int
    height: int
    results: tuple[PromptResult, ...]
    variant: str
    model: str
    reason: str
    cache: CacheTier
    timings_ms: Mapping[str, float]
    text_engine: str | None = None
    threshold: float | None = None
    expected_ms: float | None = None
    degraded: bool = False
    escalated: int = 0


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class EmbedResult:
    """The answer to an embed call: the image is known by ``image_id`` from now on."""

    image_id: str
    width: int
    height: int
    variant: str
    model: str
    cache: CacheTier
    timings_ms: Mapping[str, float]


@dataclass(frozen=True, slots=True, eq=False)
class Embedding:
    """What an encoder makes of one image; all a decoder needs to know of it.

    Attributes:
        tensors: the model's own feature maps by name, each without a batch dimension.  SAM:
            ``image_embed (256, 64, 64)``; SAM 2 adds ``high_res_feats_0 (32, 256, 256)`` and
            ``high_res_feats_1 (64, 128, 128)``.
        height, width: of the upright image in pixels.
    """

    tensors: Mapping[str, NDArray[Any]]
    height: int
    width: int

    @property
    def nbytes(self) -> int:
        return sum(t.nbytes for t in self.tensors.values())


@dataclass(frozen=True, slots=True, kw_only=True)
class DecodeOptions:
    """What the decoder does with the masks of a prompt.

    Attributes:
        return_logits: fill `Mask.low_res_logits`.
        pred_iou_thresh: drop masks with a lower predicted IoU, before they cost anything more.
        stability_score_thresh: drop masks with a lower stability score.
        stability_score_offset: the logit offset of the stability score.
        time_left_s: seconds until the caller's time is over; None: no bound.
        most_points: of the prompts, single points all, decode at most so many: those under which
            the image differs most, and fewer where it differs little.  The rest have no masks.
        prompts_at_once: most prompts under way at a time; None: all of them.
        box_nms_thresh: of all the prompts' masks, drop those whose box overlaps the box of one
            with a better predicted IoU by more than this IoU.
    """

    return_logits: bool = False
    pred_iou_thresh: float | None = None
    stability_score_thresh: float | None = None
    stability_score_offset: float = 1.0
    time_left_s: float | None = None
    most_points: int | None = None
    prompts_at_once: int | None = None
    box_nms_thresh: float | None = None


@dataclass(frozen=True, slots=True, eq=False)
class DecodeJob:
    """One prompt of one image, as the decoder batches it with those of other users."""

    embedding: Embedding
    prompt: Prompt
    options: DecodeOptions


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaLoad:
    """What a decoder replica tells of its queues with each answer.

    Attributes:
        replica: names it; opaque.
        images: waiting to be encoded or under way, for this replica.
        prompts: waiting to be decoded or under way in it.
        oldest_ms: how long the oldest waiting of them has waited.
    """

    replica: str
    images: int = 0
    prompts: int = 0
    oldest_ms: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Prediction:
    """What a decoder replica answers: the masks of each prompt, and where the time went."""

    masks: tuple[tuple[Mask, ...], ...]
    cache: CacheTier
    timings_ms: Mapping[str, float]
    load: ReplicaLoad | None = None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Proposal:
    """A candidate region: a prompt for SAM and what is known of it so far.

    Attributes:
        prompt: a point of the grid, or a box of the detector or of a contour.
        source: who proposed it.
        objectness: 0-1; 1 where the source has no opinion (the grid).
        label: the detector's class name.
    """

    prompt: Prompt
    source: ProposalSource
    objectness: float = 1.0
    label: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Candidate:
    """A region to be scored against texts: its box ``(x, y, w, h)``, mask and label, as known."""

    bbox: tuple[int, int, int, int]
    mask: Rle | None = None
    label: str | None = None
    objectness: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TextScores:
    """Scores of texts against candidates.

    Attributes:
        scores: ``(n_texts, n_candidates) float32``, calibrated to 0-1.
        engine: the engine that scored.
        threshold: the engine's documented threshold of "present".
    """

    scores: Float32Array
    engine: str
    threshold: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ScorerInfo:
    """What the flow must know of the text scorer before it calls it.

    Attributes:
        engine: ``labels`` or ``open_clip``.
        model: the architecture and weights in use.
        needs_masks: whether candidates are to be segmented before they are scored.
        proposals: the source of candidates that suits the engine.
        threshold: the engine's documented threshold of "present".
        reason: why this engine was chosen.
    """

    engine: Literal["labels", "open_clip"]
    model: str
    needs_masks: bool
    proposals: ProposalSource
    threshold: float
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class VariantInfo:
    """A deployed variant as ``/v1/models`` tells it."""

    name: str
    model: str
    family: str
    description: str
    details: Mapping[str, Any] = field(default_factory=dict)
