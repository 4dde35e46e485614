"""Requests the masks of all ground-truth objects from a service and scores them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

import numpy as np

from serve_app.capabilities import Prompts, SegmentRequest, TextQuery
from serve_app.core.errors import (
    SamServeError,
    TextUnavailable,
    UnknownImage,
    UnknownVariant,
    WeightsUnavailable,
)
from serve_app.core.ports import SegmentationService
from serve_app.core.request import AUTO, Task
from serve_app.core.rle import decode_rle
from serve_app.core.types import CacheTier, Mask, PromptResult, SegmentResult
from serve_tools.evaluation.annotations import AnnotatedImage, Dataset, GroundTruth, Problem
from serve_tools.evaluation.kinds import Multimask, PromptKind
from serve_tools.evaluation.metrics import covered_by, iou_matrix, match_greedily, sample_indices
from serve_tools.evaluation.prompts import prompt_for
from serve_tools.evaluation.records import (
    FOUND_IOU,
    Evaluation,
    EvaluationPlan,
    ObjectScore,
    TextScore,
    Timing,
)

FATAL = (UnknownVariant, TextUnavailable, WeightsUnavailable)
"""Errors that every other image would cause, too."""

TEXTS_IN_REQUEST = 16
T = TypeVar("T")


class ImageMismatch(Exception):
    """The image is not what the annotations describe."""


async def evaluate(
    service: SegmentationService,
    dataset: Dataset,
    plan: EvaluationPlan,
    progress: Callable[[int], None] = lambda done: None,
) -> Evaluation:
    """Evaluate all variants and prompts on the same objects.

    An image that fails for one variant or prompt is excluded for all and listed in
    ``failures``, so that the figures stay comparable.

    Args:
        progress: called with 1 after each image.

    Raises:
        SamServeError: one of `FATAL`, which every image would cause.
    """
    evaluation = Evaluation(dataset, plan)
    for image in dataset.images:
        of_image = Evaluation(dataset, plan)
        try:
            data = await asyncio.to_thread(image.path.read_bytes)
            # First "auto": cached embeddings of other variants would influence its choice.
            for variant in sorted(plan.variants, key=lambda name: name != AUTO):
                one = _ImageEvaluation(service, of_image, image, data, variant)
                for kind in plan.prompts:
                    await (one.texts() if kind is PromptKind.TEXT else one.objects(kind))
        except FATAL:
            raise
        except (SamServeError, ImageMismatch, OSError) as exc:
            code = exc.code if isinstance(exc, SamServeError) else "image"
            message = "cannot be read" if isinstance(exc, OSError) else str(exc)
            evaluation.failures.append(Problem(code, image.file_name, message))
        else:
            evaluation.objects += of_image.objects
            evaluation.texts += of_image.texts
            evaluation.timings += of_image.timings
            evaluation.models |= of_image.models
            evaluation.text_engines |= of_image.text_engines
        progress(1)
    return evaluation


class _ImageEvaluation:
    """One image under one variant: sent once, then referenced by its id."""

    def __init__(
        self,
        service: SegmentationService,
        notes: Evaluation,
        image: AnnotatedImage,
        data: bytes,
        variant: str,
    ) -> None:
        self._service = service
        self._notes = notes
        self._image = image
        self._data = data
        self._variant = variant
        self._image_id: str | None = None

    async def objects(self, kind: PromptKind) -> None:
        """Prompt for each object alone and score the masks."""
        plan = self._notes.plan
        multimask = plan.multimask_of(kind)
        several = multimask is not Multimask.SINGLE
        for chunk in _chunks(_sampled(self._image, plan), plan.chunk):
            prompts = [prompt_for(decode_rle(o.rle), kind, several) for o in chunk]
            task = Prompts(prompts=tuple(prompts))
            result = await self._request(task, kind, len(prompts))
            for target, found in zip(chunk, result.results, strict=True):
                self._notes.objects.append(self._scored(target, found, kind, multimask))

    def _scored(
        self,
        target: GroundTruth,
        found: PromptResult,
        kind: PromptKind,
        multimask: Multimask,
    ) -> ObjectScore:
        ious = iou_matrix([m.rle for m in found.masks], [target.rle])[:, 0]
        scores = np.array([m.score for m in found.masks])
        iou, score, oracle = 0.0, None, None
        if len(ious):
            chosen = np.argmax(ious if multimask is Multimask.ORACLE else scores)
            iou, score = float(ious[chosen]), float(scores[chosen])
        if multimask is not Multimask.SINGLE:
            oracle = float(ious.max(initial=0.0))
        return ObjectScore(
            variant=self._variant,
            prompt=kind,
            image=self._image.index,
            annotation_id=target.annotation_id,
            area=target.area,
            iou=iou,
            oracle_iou=oracle,
            score=score,
        )

    async def texts(self) -> None:
        """Query each category by name, and some that the image does not show."""
        image, plan = self._image, self._notes.plan
        present = dict.fromkeys(o.category for o in image.objects)
        seen = {*present, *(c for c, _ in image.crowds), *image.unusable}
        absent = [c for c in self._notes.dataset.categories if c not in seen]
        rng = np.random.default_rng([plan.seed, image.index])
        drawn = rng.permutation(len(absent))[: plan.absent_texts]
        names = [c for c in present if c not in image.unusable] + [absent[i] for i in drawn]
        most = max(sum(o.category == c for o in image.objects) for c in present)
        for chunk in _chunks(names, TEXTS_IN_REQUEST):
            # Room for every object and a few wrong masks, within what the interface takes.
            query = TextQuery(text=tuple(chunk), max_masks=min(most + 16, 1024))
            result = await self._request(query, PromptKind.TEXT, len(chunk))
            self._notes.text_engines.add(result.text_engine or "unknown")
            for name, found in zip(chunk, result.results, strict=True):
                self._match(name, found)

    def _match(self, name: str, found: PromptResult) -> None:
        targets = [o for o in self._image.objects if o.category == name]
        crowds = [rle for category, rle in self._image.crowds if category == name]
        masks = [m.rle for m in found.masks]
        iou = iou_matrix(masks, [t.rle for t in targets])
        partner = match_greedily(iou)
        is_found = np.zeros(len(masks), bool)
        for place, target in enumerate(targets):
            best = float(iou[partner[place], place]) if partner[place] >= 0 else 0.0
            if best >= FOUND_IOU:
                is_found[partner[place]] = True
            self._notes.objects.append(
                ObjectScore(
                    variant=self._variant,
                    prompt=PromptKind.TEXT,
                    image=self._image.index,
                    annotation_id=target.annotation_id,
                    area=target.area,
                    iou=best,
                )
            )
        in_crowd = covered_by(masks, crowds).max(axis=1, initial=0.0) > FOUND_IOU
        self._notes.texts.append(
            TextScore(
                variant=self._variant,
                image=self._image.index,
                text=name,
                in_image=bool(targets),
                said_present=bool(found.present),
                found=int(is_found.sum()),
                unmatched=int((~is_found & ~in_crowd).sum()),
            )
        )

    async def _request(self, task: Task, kind: PromptKind, count: int) -> SegmentResult:
        image = self._image
        try:
            result = await self._service.segment(
                SegmentRequest(image=self._image_id or self._data, task=task, variant=self._variant)
            )
        except UnknownImage:
            # It was evicted: send it again.
            if self._image_id is None:
                raise
            self._image_id = None
            return await self._request(task, kind, count)
        self._image_id = result.image_id
        if (result.width, result.height) != (image.width, image.height):
            raise ImageMismatch(
                f"the upright image is {result.width} x {result.height} pixels, its annotations "
                f"are for {image.width} x {image.height}"
            )
        if len(result.results) != count:
            raise ImageMismatch(f"{count} prompts returned {len(result.results)} results")
        _check_sizes((m for r in result.results for m in r.masks), image)
        self._notes.models[self._variant] = result.model
        self._notes.timings.append(
            Timing(
                variant=self._variant,
                prompt=kind,
                prompts=count,
                cached=result.cache is not CacheTier.MISS,
                stages=dict(result.timings_ms),
                image=image.index,
                escalated=result.escalated,
                replaced=sum(r.variant is not None for r in result.results),
            )
        )
        return result


def _check_sizes(masks: Iterable[Mask], image: AnnotatedImage) -> None:
    if any(m.rle.size != (image.height, image.width) for m in masks):
        raise ImageMismatch("a mask is not of the image's size")


def _sampled(image: AnnotatedImage, plan: EvaluationPlan) -> Sequence[GroundTruth]:
    """At most ``max_objects`` objects, the same for every variant and prompt."""
    keep = sample_indices(len(image.objects), plan.max_objects, [plan.seed, image.index])
    return [image.objects[i] for i in keep]


def _chunks(items: Sequence[T], size: int) -> list[Sequence[T]]:
    return [items[i : i + size] for i in range(0, len(items), size)]
