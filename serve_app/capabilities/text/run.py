"""Step 3, text: candidate regions, scored against each text, segmented where they match."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from serve_app.capabilities.everything.run import merge, propose
from serve_app.core.ports import Proposer, TextScorer
from serve_app.core.types import (
    Candidate,
    DecodeOptions,
    Float32Array,
    Mask,
    PromptResult,
    Proposal,
    ScorerInfo,
    TextQuery,
    TextScores,
)
from serve_app.flow.session import Session
from serve_app.flow.timings import Timings
from serve_app.images.store import ImageRef

_DUPLICATES = 0.7
"""Box IoU from which two candidates are one object."""

# Milder than Meta's defaults for "everything": a poor candidate is rejected by its text score.
_CANDIDATES = DecodeOptions(pred_iou_thresh=0.7, stability_score_thresh=0.85)


class TextStep:
    """Runs one `TextQuery`."""

    def __init__(self, proposer: Proposer, scorer: TextScorer, timings: Timings) -> None:
        self._proposer = proposer
        self._scorer = scorer
        self._timings = timings

    async def run(
        self, image: ImageRef, query: TextQuery, session: Session
    ) -> tuple[tuple[PromptResult, ...], TextScores]:
        """One result for each text, and the scores with their engine and threshold."""
        info = await self._scorer.info()
        with self._timings.stage("propose"):
            source = query.proposals or info.proposals
            proposals = await propose(self._proposer, image, source, query.points_per_side)
        if info.needs_masks:
            return await self._segment_then_score(image, query, session, proposals)
        return await self._score_then_segment(image, query, session, proposals, info)

    async def _score(
        self, image: ImageRef, candidates: Sequence[Candidate], query: TextQuery
    ) -> TextScores:
        with self._timings.stage("score_text"):
            scored = await self._scorer.score(await image.pixels(), candidates, query.texts)
        if query.threshold is not None:
            scored = replace(scored, threshold=query.threshold)
        return scored

    async def _segment_then_score(
        self,
        image: ImageRef,
        query: TextQuery,
        session: Session,
        proposals: Sequence[Proposal],
    ) -> tuple[tuple[PromptResult, ...], TextScores]:
        answers = await session.predict(image, [p.prompt for p in proposals], _CANDIDATES)
        masks = merge(
            [
                replace(mask, label=proposal.label)
                for proposal, of_prompt in zip(proposals, answers, strict=True)
                for mask in of_prompt
                if mask.area
            ],
            _DUPLICATES,
        )
        candidates = [Candidate(bbox=m.bbox, mask=m.rle, label=m.label) for m in masks]
        scored = await self._score(image, candidates, query)
        results = []
        for text, row in zip(query.texts, scored.scores, strict=True):
            picked = _best(row, scored.threshold, query.max_masks)
            results.append(
                _result(text, row, [replace(masks[i], text_score=float(row[i])) for i in picked])
            )
        return tuple(results), scored

    async def _score_then_segment(
        self,
        image: ImageRef,
        query: TextQuery,
        session: Session,
        proposals: Sequence[Proposal],
        info: ScorerInfo,
    ) -> tuple[tuple[PromptResult, ...], TextScores]:
        candidates = [
            Candidate(bbox=_bbox(p), label=p.label, objectness=p.objectness) for p in proposals
        ]
        scored = await self._score(image, candidates, query)
        picked = [_best(row, scored.threshold, query.max_masks) for row in scored.scores]
        wanted = sorted({i for of_text in picked for i in of_text})
        prompts = [replace(proposals[i].prompt, multimask_output=False) for i in wanted]
        # With no candidate left the image is embedded all the same: the next prompt is quick.
        answers = await session.predict(image, prompts, DecodeOptions())
        masks: dict[int, Mask] = {
            i: replace(answer[0], label=proposals[i].label)
            for i, answer in zip(wanted, answers, strict=True)
            if answer and answer[0].area
        }
        results = []
        for text, row, of_text in zip(query.texts, scored.scores, picked, strict=True):
            found = [replace(masks[i], text_score=float(row[i])) for i in of_text if i in masks]
            # A region that SAM finds nothing in is not present, whatever the text says to it.
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
