"""How well a variant's masks fit objects with known exact masks."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from serve_app.core.inference import DecodeJob, DecodeOptions, Embedding
from serve_app.core.measurements import PromptType, QualityKind, Share
from serve_app.core.ports import DecoderEngine, EncoderEngine
from serve_app.core.rle import Rle, decode_rle
from serve_app.core.types import Mask, Prompt, RgbArray
from serve_app.routing.cascade import best_mask, features

if TYPE_CHECKING:
    from serve_tools.profiling.samples import Sample

# The evaluation's modules are imported where they are used: they must not slow the cold start.

COUNTED: dict[QualityKind, PromptType] = {"box": "box-1", "point": "point-3"}
"""The type of prompt for each quality figure, as in `serve_tools.evaluation`."""


_IN_A_PASS = 32
"""Prompts per pass, as in a replica; hundreds of masks would take too much memory."""


@dataclass(frozen=True, slots=True)
class QualityRecord:
    """One object under one prompt and variant.

    Attributes:
        variant: its name.
        kind: the prompt: its tight box, or one click on its deepest point.
        form: kind, and the number of masks requested.
        image: number of the image, the same for every variant.
        object: number of the object in its image.
        iou: of the mask with the best score, with the exact one; 0 if there was none.
        score: the model's own estimate of ``iou``.
        stability: the mask's stability score.
        features: of `serve_app.routing.cascade`; none without a mask.
    """

    variant: str
    kind: QualityKind
    form: PromptType
    image: int
    object: int
    iou: float
    score: float
    stability: float
    features: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, eq=False)
class Prediction:
    """A variant's embedding and masks of one image; all prompts, by form and then by object."""

    sample: Sample
    forms: tuple[PromptType, ...]
    prompts: Sequence[Prompt]
    embedding: Embedding
    masks: Sequence[tuple[Mask, ...]]

    @property
    def pixels(self) -> RgbArray:
        return self.sample.pixels


def predict_sample(
    encoder: EncoderEngine, decoder: DecoderEngine, sample: Sample, forms: Sequence[PromptType]
) -> Prediction:
    """Prompt for each object of an image in each form."""
    from serve_tools.evaluation.kinds import PromptKind
    from serve_tools.evaluation.prompts import prompt_for

    embedding = encoder.encode_batch([sample.pixels])[0]
    exact = [decode_rle(rle) for _, rle in sample.objects]
    prompts = [
        prompt_for(mask, PromptKind(_kind(form)), form.endswith("-3"))
        for form in forms
        for mask in exact
    ]
    jobs = [DecodeJob(embedding, prompt, DecodeOptions()) for prompt in prompts]
    masks = [
        masks_of_prompt
        for start in range(0, len(jobs), _IN_A_PASS)
        for masks_of_prompt in decoder.decode_batch(jobs[start : start + _IN_A_PASS])
    ]
    return Prediction(sample, tuple(forms), prompts, embedding, masks)


def records_of(variant: str, predicted: Prediction) -> list[QualityRecord]:
    """One record for each prompt of an image."""
    objects = predicted.sample.objects
    records = []
    for place, (prompt, masks) in enumerate(zip(predicted.prompts, predicted.masks, strict=True)):
        form, (number, rle) = predicted.forms[place // len(objects)], objects[place % len(objects)]
        records.append(_record(variant, form, predicted.sample.index, number, rle, prompt, masks))
    return records


def _record(
    variant: str,
    form: PromptType,
    image: int,
    number: int,
    rle: Rle,
    prompt: Prompt,
    masks: Sequence[Mask],
) -> QualityRecord:
    from serve_tools.evaluation.metrics import iou_matrix

    kind = _kind(form)
    if not masks:
        return QualityRecord(variant, kind, form, image, number, 0.0, 0.0, 0.0)
    best = best_mask(masks)
    return QualityRecord(
        variant=variant,
        kind=kind,
        form=form,
        image=image,
        object=number,
        iou=float(iou_matrix([best.rle], [rle])[0, 0]),
        score=best.score,
        stability=best.stability_score,
        features=features(prompt, masks),
    )


def _kind(form: PromptType) -> QualityKind:
    return "box" if form.startswith("box") else "point"


def mean_iou(records: Iterable[QualityRecord], seed: int) -> dict[QualityKind, Share]:
    """Mean IoU by kind of prompt, in the form of `COUNTED`, with 95 % intervals."""
    listed = list(records)
    shares = {}
    for kind, form in COUNTED.items():
        counted = [r for r in listed if r.form == form]
        if counted:
            shares[kind] = mean_share([r.iou for r in counted], [r.image for r in counted], seed)
    return shares


def mean_share(values: Sequence[float], images: Sequence[int], seed: int) -> Share:
    """Mean of a non-empty list, with a bootstrap interval over images where there are several."""
    from serve_tools.evaluation.metrics import cluster_mean

    found = cluster_mean(values, images, seed=seed)
    if found is None:
        raise ValueError("nothing to take the mean of")
    # Rounding, here and in the resampling, may not put an end on the mean's other side.
    mean = round(found.mean, 6)
    low = None if found.low is None else min(mean, round(found.low, 6))
    high = None if found.high is None else max(mean, round(found.high, 6))
    return Share(value=mean, low=low, high=high)
