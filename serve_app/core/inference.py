"""What travels between the flow, the proposals and the replicas of a variant."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from numpy.typing import NDArray

from serve_app.core.rle import Rle
from serve_app.core.types import CacheTier, Float32Array, Mask, Prompt, ProposalSource


@dataclass(frozen=True, slots=True, eq=False)
class Embedding:
    """The output of an encoder for one image, and the input of a decoder.

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
    """How the decoder filters and returns the masks of a prompt.

    Attributes:
        return_logits: fill `Mask.low_res_logits`.
        pred_iou_thresh: drop masks with a lower predicted IoU, before they cost anything more.
        stability_score_thresh: drop masks with a lower stability score.
        stability_score_offset: the logit offset of the stability score.
        time_left_s: seconds until the request's deadline; None: no deadline.
        most_points: for prompts that are single points: the maximum number to decode.  Points at
            which the image differs most are selected; the others get no masks.
        prompts_at_once: maximum number of prompts in flight; None: all of them.
        box_nms_thresh: box IoU above which a mask is dropped in favour of one with a better
            predicted IoU, over the masks of all prompts.
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
    """The queues of a decoder replica, reported with each prediction.

    Attributes:
        replica: the replica's id; opaque.
        images: images that wait for the encoder or are in it, for this replica.
        prompts: prompts that wait for the decoder or are in it.
        oldest_ms: age of the oldest waiting item.
    """

    replica: str
    images: int = 0
    prompts: int = 0
    oldest_ms: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Prediction:
    """The result of a decoder replica: the masks of each prompt, and the time of each stage."""

    masks: tuple[tuple[Mask, ...], ...]
    cache: CacheTier
    timings_ms: Mapping[str, float]
    load: ReplicaLoad | None = None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Proposal:
    """A candidate region: a prompt for SAM and what is known of it so far.

    Attributes:
        prompt: a point of the grid, or a box of the detector or of a contour.
        source: where it comes from.
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
        engine, threshold: of the engine that scored, as in `ScorerInfo`.
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
        vocabulary: the names that the engine tells apart; None: an open vocabulary.
        reason: why this engine was chosen.
    """

    engine: Literal["labels", "open_clip"]
    model: str
    needs_masks: bool
    proposals: ProposalSource
    threshold: float
    vocabulary: tuple[str, ...] | None = None
    reason: str = ""
