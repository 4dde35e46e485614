"""The real flow, with stand-ins where models would be: answers of the right form for anything."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from serve_app.capabilities import CAPABILITIES
from serve_app.core.capability import Capabilities
from serve_app.core.inference import (
    Candidate,
    DecodeOptions,
    Prediction,
    Proposal,
    ScorerInfo,
    TextScores,
    VariantInfo,
)
from serve_app.core.limits import Limits
from serve_app.core.measurements import Measurements
from serve_app.core.rle import encode_rle
from serve_app.core.settings import RouterSettings
from serve_app.core.types import CacheTier, Mask, Prompt, ProposalSource, RgbArray
from serve_app.flow.flow import SegmentationFlow
from serve_app.images.store import ImageStore
from serve_app.routing.dispatcher import Dispatcher
from serve_app.routing.load_tracker import Capacity


class StandInPredictor:
    """Answers every prompt with masks of the image's upper left half."""

    def __init__(self) -> None:
        self._known: set[str] = set()

    async def predict(
        self,
        image_id: str,
        pixels: RgbArray | None,
        prompts: Sequence[Prompt],
        options: DecodeOptions,
    ) -> Prediction | None:
        if pixels is None and image_id not in self._known:
            return None
        tier = CacheTier.MEMORY if image_id in self._known else CacheTier.MISS
        self._known.add(image_id)
        width, height = (int(side) for side in image_id.split("-")[0].split("x"))
        array = np.zeros((height, width), np.bool_)
        array[: (height + 1) // 2, : (width + 1) // 2] = True
        logits = np.ones((256, 256), np.float16) if options.return_logits else None
        mask = Mask(
            rle=encode_rle(array),
            score=0.9,
            stability_score=0.97,
            bbox=(0, 0, (width + 1) // 2, (height + 1) // 2),
            area=int(array.sum()),
            low_res_logits=logits,
        )
        masks = tuple((mask,) * (3 if p.multimask_output else 1) for p in prompts)
        return Prediction(masks=masks, cache=tier, timings_ms={"decode_masks": 1.0})

    async def scale_from_zero(self) -> None:
        pass


class StandInProposer:
    """Proposes the whole image."""

    async def propose(
        self,
        pixels: RgbArray | None,
        size: tuple[int, int],
        source: ProposalSource,
        points_per_side: int,
    ) -> tuple[Proposal, ...]:
        box = Prompt(box=np.array([0, 0, *size], np.float32))
        return (Proposal(prompt=box, source=source, objectness=0.5, label="dog"),)


class StandInScorer:
    """Finds dogs."""

    async def info(self) -> ScorerInfo:
        return ScorerInfo(
            engine="labels",
            model="fake",
            needs_masks=False,
            proposals=ProposalSource.DETECTOR,
            threshold=0.5,
        )

    async def score(
        self, pixels: RgbArray, candidates: Sequence[Candidate], texts: Sequence[str]
    ) -> TextScores:
        row = [[0.9 if text == "dog" else 0.2] * len(candidates) for text in texts]
        scores = np.array(row, np.float32).reshape(len(texts), len(candidates))
        return TextScores(scores=scores, engine="labels", threshold=0.5)


def standin_flow(limits: Limits, capabilities: Capabilities = CAPABILITIES) -> SegmentationFlow:
    """A flow whose variant *fast* is a stand-in."""
    predictor = StandInPredictor()
    dispatcher = Dispatcher(
        RouterSettings(), {"fast": Capacity()}, Measurements(), {"fast": predictor.scale_from_zero}
    )
    return SegmentationFlow(
        capabilities=capabilities,
        images=ImageStore(limits, 2**20),
        variants={"fast": VariantInfo(name="fast", model="m", family="sam", description="")},
        predictors={"fast": predictor},
        proposer=StandInProposer(),
        scorer=StandInScorer(),
        dispatcher=dispatcher,
        limits=limits,
        timeout_s=60.0,
    )
