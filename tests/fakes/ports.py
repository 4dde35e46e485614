"""In-process fakes of the ports between the flow and the models."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from serve_app.core.deadline import time_left_s
from serve_app.core.errors import Overloaded
from serve_app.core.inference import (
    Candidate,
    DecodeOptions,
    Prediction,
    Proposal,
    ScorerInfo,
    TextScores,
)
from serve_app.core.types import (
    CacheTier,
    Mask,
    Prompt,
    ProposalSource,
    RgbArray,
    UnknownText,
)

from .masks import rectangle_mask

Size = tuple[int, int]


def prompted_masks(prompt: Prompt, size: Size, score: float = 0.9) -> tuple[Mask, ...]:
    """A box's mask fills it; a point has a square of 4 pixels and, of several masks, one of 3.

    Args:
        size: ``(height, width)`` in pixels.
        score: of a box's mask.
    """
    if prompt.box is not None:
        x0, y0, x1, y1 = (int(v) for v in prompt.box.clip(0))
        return (_inside((x0, y0, x1 - x0, y1 - y0), size, score),)
    x, y = (0, 0) if prompt.point_coords is None else map(int, prompt.point_coords[0])
    masks = (_inside((x, y, 4, 4), size, 0.8), _inside((x, y, 3, 3), size, 0.7))
    return masks if prompt.multimask_output else masks[:1]


def _inside(box: tuple[int, int, int, int], size: Size, score: float) -> Mask:
    """A rectangle, cut off at the image's border; of one pixel at least."""
    (x, y, w, h), (height, width) = box, size
    x, y = min(x, width - 1), min(y, height - 1)
    cut = (x, y, max(1, min(w, width - x)), max(1, min(h, height - y)))
    return rectangle_mask(cut, score, 1.0, size)


class FakePredictor:
    """Masks by rule for the images that it has seen.

    Attributes:
        masks_of: the rule.
        remembers: whether an image without pixels may be known.
        forgets: whether no image is known, not even with its pixels.
        sure: score of a box's mask.
        failure: raised instead of a prediction.
        calls: image id, whether pixels were sent, and number of prompts of each.
        options: of each call.
        times_left: seconds to the deadline of each call.
        scaled: how often it was started.
    """

    def __init__(self, *, remembers: bool = True) -> None:
        self.masks_of: Callable[[Prompt, Size], tuple[Mask, ...]] = self._prompted
        self.remembers = remembers
        self.forgets = False
        self.sure = 0.9
        self.failure: Exception | None = None
        self.known: set[str] = set()
        self.calls: list[tuple[str, bool, int]] = []
        self.options: list[DecodeOptions] = []
        self.times_left: list[float | None] = []
        self.scaled = 0

    async def predict(
        self,
        image_id: str,
        pixels: RgbArray | None,
        prompts: Sequence[Prompt],
        options: DecodeOptions,
    ) -> Prediction | None:
        self.calls.append((image_id, pixels is not None, len(prompts)))
        self.options.append(options)
        self.times_left.append(time_left_s())
        if self.failure is not None:
            raise self.failure
        if self.forgets or (pixels is None and image_id not in self.known):
            return None
        if pixels is not None:
            pixels.max()  # a model reads all of it
        tier = CacheTier.MEMORY if image_id in self.known else CacheTier.MISS
        if self.remembers:
            self.known.add(image_id)
        width, height = map(int, image_id.split("-")[0].split("x"))
        masks = tuple(self._masks(prompt, (height, width), options) for prompt in prompts)
        return Prediction(masks=masks, cache=tier, timings_ms={"decode_masks": 1.0})

    async def scale_from_zero(self) -> None:
        self.scaled += 1

    def _masks(self, prompt: Prompt, size: Size, options: DecodeOptions) -> tuple[Mask, ...]:
        masks = self.masks_of(prompt, size)
        if not options.return_logits:
            return masks
        return tuple(replace(m, low_res_logits=np.ones((256, 256), np.float16)) for m in masks)

    def _prompted(self, prompt: Prompt, size: Size) -> tuple[Mask, ...]:
        return prompted_masks(prompt, size, self.sure)


class FakeProposer:
    """A cat, a dog, and a box without a label; three points of the grid.

    Args:
        boxes, points: in pixels of an image of 60 by 40; in others they are scaled.
    """

    BOXES = ((2, 3, 12, 13, "cat"), (20, 5, 40, 25, "dog"), (45, 20, 55, 35, None))
    POINTS = ((10, 10), (30, 10), (10, 30))

    def __init__(
        self,
        boxes: Sequence[tuple[int, int, int, int, str | None]] = BOXES,
        points: Sequence[tuple[int, int]] = POINTS,
    ) -> None:
        self._boxes, self._points = boxes, points
        self.calls: list[tuple[ProposalSource, int]] = []

    async def propose(
        self,
        pixels: RgbArray | None,
        size: tuple[int, int],
        source: ProposalSource,
        points_per_side: int,
    ) -> tuple[Proposal, ...]:
        assert (pixels is None) == (source is ProposalSource.GRID)
        self.calls.append((source, points_per_side))
        scale = np.array(size) / (60, 40)
        if source is ProposalSource.GRID:
            prompts = [Prompt(point_coords=[p * scale], point_labels=[1]) for p in self._points]
            return tuple(Proposal(prompt=prompt, source=source) for prompt in prompts)
        return tuple(
            Proposal(
                prompt=Prompt(box=np.array(box) * np.tile(scale, 2)),
                source=source,
                objectness=0.5,
                label=label,
            )
            for *box, label in self._boxes
        )


class FakeScorer:
    """0.9 for the label, or the left edge ("at 10"), of a candidate; 0.3 for others.

    The text "all" has a score for each candidate, ascending by position; "no ..." is unknown.
    """

    def __init__(self, needs_masks: bool = False) -> None:
        self.needs_masks = needs_masks
        self.candidates: list[Candidate] = []
        self.vocabulary: tuple[str, ...] | None = None
        self.down = False

    async def info(self) -> ScorerInfo:
        if self.down:
            raise Overloaded("no replica")
        return ScorerInfo(
            engine="open_clip" if self.needs_masks else "labels",
            model="fake",
            needs_masks=self.needs_masks,
            proposals=ProposalSource.GRID if self.needs_masks else ProposalSource.DETECTOR,
            threshold=0.5,
            vocabulary=self.vocabulary,
        )

    async def unknown(self, texts: Sequence[str]) -> tuple[UnknownText | None, ...]:
        why = UnknownText(reason="negation", message="negation is not understood")
        return tuple(why if text.startswith("no ") else None for text in texts)

    async def score(
        self, pixels: RgbArray, candidates: Sequence[Candidate], texts: Sequence[str]
    ) -> TextScores:
        self.candidates = list(candidates)
        scores = np.full((len(texts), len(candidates)), 0.3, np.float32)
        for row, text in enumerate(texts):
            for column, candidate in enumerate(candidates):
                if text in (candidate.label, f"at {candidate.bbox[0]}"):
                    scores[row, column] = 0.9
                elif text == "all":
                    scores[row, column] = 0.6 + 0.1 * column
        return TextScores(scores=scores, engine="fake", threshold=0.5)
