"""Text: candidate regions, scored against each text, segmented where they match."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated, Any

import numpy as np
from pydantic import AfterValidator, BeforeValidator, Field, WithJsonSchema

from serve_app.core.capability import Capability, Context, Cost, Image, Outcome
from serve_app.core.errors import InvalidRequest, TextUnavailable
from serve_app.core.geometry import mask_nms
from serve_app.core.inference import Candidate, DecodeOptions, Proposal, TextScores
from serve_app.core.ports import TextScorer
from serve_app.core.request import Members, Task
from serve_app.core.types import (
    Float32Array,
    Mask,
    PromptResult,
    ProposalSource,
    UnknownText,
)
from serve_app.core.wire import AtMost, Share, Whole, as_tuple, fault


def _several(value: Any) -> Any:
    return (value,) if isinstance(value, str) else as_tuple(value)


def _not_blank(texts: tuple[str, ...]) -> tuple[str, ...]:
    if not texts or any(not text.strip() for text in texts):
        raise fault(InvalidRequest, "text must hold at least one text, none of them empty")
    return texts


_TEXT = {"type": "string", "minLength": 1}


class TextQuery(Task):
    """Find the objects that texts name; each text has its own result."""

    name = "text"
    flat = True

    text: Annotated[
        tuple[str, ...],
        AfterValidator(_not_blank),
        AtMost("max_texts", "texts"),
        AtMost("max_text_chars", "characters in a text", each=True),
        BeforeValidator(_several),
        WithJsonSchema({"anyOf": [_TEXT, {"type": "array", "items": _TEXT, "minItems": 1}]}),
    ] = Field(
        description='what to look for, or several, such as `["dog", "red car"]`; each text has its '
        "own result",
        examples=["dog"],
    )
    text_threshold: Share | None = Field(
        None, description="minimum calibrated score of a mask; default: the engine's"
    )
    max_masks: Annotated[Whole, Field(ge=1, le=1024)] = Field(
        16, description="maximum number of masks for each text, best first"
    )
    proposals: Annotated[ProposalSource, Field(strict=False)] | None = Field(
        None, description="source of the candidate regions; default: the engine's"
    )
    points_per_side: Annotated[Whole, Field(ge=1), AtMost("max_points_per_side")] = Field(
        16, description="of the grid, where the candidate regions come from it"
    )

    @property
    def size(self) -> int:
        return len(self.text)

    @classmethod
    def count(cls, members: Members) -> tuple[int, int]:
        text = members.get("text")
        return (len(text) if isinstance(text, list) else 1), 0


_NO_LABELS = UnknownText(
    reason="proposals",
    message="this engine reads the labels of a detector; only `proposals: detector` has them",
)

_DUPLICATES = 0.7
"""Box IoU from which two candidates are one object."""

_DETECTIONS = 10
"""Boxes that a detector usually proposes; the number is known only after it has run."""

# Lower than Meta's defaults for "everything": a poor candidate is rejected by its text score.
_CANDIDATES = DecodeOptions(pred_iou_thresh=0.7, stability_score_thresh=0.85)


async def cost(query: TextQuery, image: Image, scorer: TextScorer | None) -> Cost:
    """As many prompts as the source of candidates proposes."""
    source = query.proposals
    if source is None and scorer is not None:
        source = (await scorer.info()).proposals
    if source is ProposalSource.GRID:
        return Cost(prompts=(query.points_per_side**2,), prompt_type="point")
    return Cost(prompts=(_DETECTIONS,), prompt_type="box")


async def run(query: TextQuery, context: Context) -> Outcome:
    """One result for each text; those that the engine cannot look for cost no segmentation.

    Raises:
        TextUnavailable: the graph has no text scoring.
    """
    scorer = context.scorer
    if scorer is None:
        raise TextUnavailable("this graph is deployed without text scoring", "text")
    info = await scorer.info()
    source = query.proposals or info.proposals
    if info.vocabulary is not None and source is not ProposalSource.DETECTOR:
        unknown: Sequence[UnknownText | None] = [_NO_LABELS] * query.size
    else:
        unknown = await scorer.unknown(query.text)
    texts = tuple(t for t, why in zip(query.text, unknown, strict=True) if why is None)
    engine: str = info.engine
    found: tuple[PromptResult, ...] = ()
    threshold = info.threshold if query.text_threshold is None else query.text_threshold
    if texts:
        with context.stage("propose"):
            proposals = await context.propose(context.image, source, query.points_per_side)
        find = _segment_then_score if info.needs_masks else _score_then_segment
        known = query.model_copy(update={"text": texts})
        found, scored = await find(known, context, scorer, proposals)
        engine, threshold = scored.engine, scored.threshold
    answered = iter(found)
    results = tuple(
        next(answered) if why is None else PromptResult(masks=(), text=text, unknown=why)
        for text, why in zip(query.text, unknown, strict=True)
    )
    return Outcome(results=results, text_engine=engine, threshold=threshold)


async def _score(
    query: TextQuery, context: Context, scorer: TextScorer, candidates: Sequence[Candidate]
) -> TextScores:
    with context.stage("score_text"):
        pixels = await context.image.pixels()
        scored = await scorer.score(pixels, candidates, query.text)
    if query.text_threshold is not None:
        scored = replace(scored, threshold=query.text_threshold)
    return scored


async def _segment_then_score(
    query: TextQuery, context: Context, scorer: TextScorer, proposals: Sequence[Proposal]
) -> tuple[tuple[PromptResult, ...], TextScores]:
    """For engines that look at the masked regions."""
    by_prompt = await context.predict(context.image, [p.prompt for p in proposals], _CANDIDATES)
    found = [
        replace(mask, label=proposal.label)
        for proposal, of_prompt in zip(proposals, by_prompt, strict=True)
        for mask in of_prompt
        if mask.area
    ]
    masks = [found[i] for i in mask_nms(found, _DUPLICATES)]
    candidates = [Candidate(bbox=m.bbox, mask=m.rle, label=m.label) for m in masks]
    scored = await _score(query, context, scorer, candidates)
    results = []
    for text, row in zip(query.text, scored.scores, strict=True):
        picked = _best(row, scored.threshold, query.max_masks)
        results.append(
            _result(text, row, [replace(masks[i], text_score=float(row[i])) for i in picked])
        )
    return tuple(results), scored


async def _score_then_segment(
    query: TextQuery, context: Context, scorer: TextScorer, proposals: Sequence[Proposal]
) -> tuple[tuple[PromptResult, ...], TextScores]:
    """For engines that score boxes and their labels: only matches are segmented."""
    candidates = [
        Candidate(bbox=_bbox(p), label=p.label, objectness=p.objectness) for p in proposals
    ]
    scored = await _score(query, context, scorer, candidates)
    picked = [_best(row, scored.threshold, query.max_masks) for row in scored.scores]
    wanted = sorted({i for of_text in picked for i in of_text})
    prompts = [proposals[i].prompt.model_copy(update={"multimask_output": False}) for i in wanted]
    # Without candidates the image is embedded anyway, so that the next prompt is fast.
    by_prompt = await context.predict(context.image, prompts, DecodeOptions())
    masks: dict[int, Mask] = {
        i: replace(of_prompt[0], label=proposals[i].label)
        for i, of_prompt in zip(wanted, by_prompt, strict=True)
        if of_prompt and of_prompt[0].area
    }
    results = []
    for text, row, of_text in zip(query.text, scored.scores, picked, strict=True):
        found = [replace(masks[i], text_score=float(row[i])) for i in of_text if i in masks]
        # A region in which SAM finds nothing is not present, whatever its text score.
        row = np.where([i in of_text and i not in masks for i in range(len(row))], 0.0, row)
        results.append(_result(text, row, found))
    return tuple(results), scored


def _best(row: Float32Array, threshold: float, limit: int) -> list[int]:
    """Indices of the scores that reach the threshold, best first."""
    order = np.argsort(-row, kind="stable")
    return [int(i) for i in order if row[i] >= threshold][:limit]


def _result(text: str, row: Float32Array, masks: Sequence[Mask]) -> PromptResult:
    best = float(row.max()) if row.size else 0.0
    return PromptResult(masks=tuple(masks), text=text, present=bool(masks), best_score=best)


def _bbox(proposal: Proposal) -> tuple[int, int, int, int]:
    """A proposal's box or point as ``(x, y, w, h)`` in whole pixels."""
    prompt = proposal.prompt
    if prompt.box is not None:
        x0, y0, x1, y1 = prompt.box.tolist()
    elif prompt.point_coords is not None:
        x0, y0 = x1, y1 = prompt.point_coords[0].tolist()
    else:
        x0 = y0 = x1 = y1 = 0.0
    left, top = int(x0), int(y0)
    return left, top, max(1, round(x1) - left), max(1, round(y1) - top)


CAPABILITY = Capability(task=TextQuery, run=run, cost=cost)
