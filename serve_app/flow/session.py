"""Prompts of one request on one variant: the way to its predictor."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace

from serve_app.core.errors import UnknownImage
from serve_app.core.ports import Predictor
from serve_app.core.types import (
    CacheTier,
    DecodeOptions,
    Mask,
    Prediction,
    Prompt,
    RgbArray,
)
from serve_app.flow.timings import Timings
from serve_app.images.store import OpenImage
from serve_app.routing.load_tracker import LoadTracker


class Session:
    """Predicts for one request, adding up its timings and noting its load.

    Attributes:
        variant: who answers.
        cache: the tier that held the embedding of the first image asked about.
    """

    def __init__(
        self,
        variant: str,
        predictor: Predictor,
        load_tracker: LoadTracker,
        timings: Timings,
        return_logits: bool = False,
    ) -> None:
        self.variant = variant
        self._predictor = predictor
        self._load_tracker = load_tracker
        self._return_logits = return_logits
        self._timings = timings
        self._known: set[str] = set()
        self.cache: CacheTier | None = None

    async def predict(
        self, image: OpenImage, prompts: Sequence[Prompt], options: DecodeOptions
    ) -> tuple[tuple[Mask, ...], ...]:
        """Masks for each prompt.  Pixels move only if the variant does not know the image."""
        options = replace(options, return_logits=self._return_logits)
        # A new image's pixels go along at once, which saves a round trip.
        new = image.new and image.id not in self._known
        pixels = await image.pixels() if new else None
        with self._timings.stage("predict"):
            prediction = await self._ask(image, pixels, prompts, options)
            if prediction is None:
                self._load_tracker.forget(self.variant, image.id)
                prediction = await self._ask(image, await image.pixels(), prompts, options)
        if prediction is None:
            raise UnknownImage("the image could not be embedded: send it again", "image_id")
        self._known.add(image.id)
        self._timings.add(prediction.timings_ms)
        if self.cache is None:
            self.cache = prediction.cache
        return prediction.masks

    async def _ask(
        self,
        image: OpenImage,
        pixels: RgbArray | None,
        prompts: Sequence[Prompt],
        options: DecodeOptions,
    ) -> Prediction | None:
        """One call, counted as load from before it leaves until it has ended in any way."""
        count = len(prompts)
        if options.most_points is not None:
            count = min(count, options.most_points)
        ticket = self._load_tracker.acquire(
            self.variant, image.id, count, time.monotonic(), most=options.most_points is not None
        )
        prediction: Prediction | None = None
        try:
            prediction = await self._predictor.predict(image.id, pixels, prompts, options)
        finally:
            self._load_tracker.release(ticket, time.monotonic(), prediction)
        return prediction
