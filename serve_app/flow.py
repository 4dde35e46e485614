"""Read this first: how a request becomes masks.

    request ──1 open──▶ image ──2 route──▶ variant ──3 task──▶ prompts
            ──4 predict──▶ masks ──▶ result

The flow runs in the ingress.  It decides and delegates: pixels are decoded by `steps.images`,
candidate regions come from a `Proposer`, text scores from a `TextScorer`, masks from the
`Predictor` of the chosen variant, which alone knows embeddings (`serve_app.predictor`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

from serve_app.domain.errors import InvalidPrompt, SamServeError, TextUnavailable
from serve_app.domain.limits import Limits
from serve_app.domain.types import (
    CacheTier,
    DecodeOptions,
    EmbedResult,
    Everything,
    PromptResult,
    RgbArray,
    SegmentRequest,
    SegmentResult,
    TextQuery,
    TextScores,
    VariantInfo,
)
from serve_app.ports import Predictor, Proposer, TextScorer
from serve_app.routing.router import Choice, choose_variant
from serve_app.steps.everything import EverythingStep
from serve_app.steps.images import ImageStore, OpenImage
from serve_app.steps.limits import check_limits
from serve_app.steps.session import Session
from serve_app.steps.text import TextStep
from serve_app.steps.timing import Timings

_READY_TIMEOUT_S = 5.0


class SegmentationFlow:
    """The `SegmentationService` over the ports."""

    def __init__(
        self,
        *,
        images: ImageStore,
        variants: Mapping[str, VariantInfo],
        predictors: Mapping[str, Predictor],
        proposer: Proposer,
        scorer: TextScorer | None,
        default_variant: str,
        limits: Limits,
    ) -> None:
        self._images = images
        self._variants = variants
        self._predictors = predictors
        self._proposer = proposer
        self._scorer = scorer
        self._default = default_variant
        self._limits = limits

    async def segment(self, request: SegmentRequest) -> SegmentResult:
        """Answer one request; see `serve_app.ports.SegmentationService.segment`."""
        timings = Timings()
        check_limits(request.task, self._limits)
        choice = self._route(request.variant)
        image = await self._open(request.image, timings)
        session = Session(self._predictors[choice.variant], timings, request.return_logits)

        scored: TextScores | None = None
        results: tuple[PromptResult, ...]
        task = request.task
        if isinstance(task, Everything):
            step = EverythingStep(self._proposer, timings)
            results = (PromptResult(masks=await step.run(image, task, session)),)
        elif isinstance(task, TextQuery):
            if self._scorer is None:
                raise TextUnavailable("this graph is deployed without text scoring", "text")
            text = TextStep(self._proposer, self._scorer, timings)
            results, scored = await text.run(image, task, session)
        else:
            for i, prompt in enumerate(task):
                try:
                    prompt.check_inside(image.width, image.height)
                except InvalidPrompt as exc:
                    raise exc.at(f"prompts[{i}]") from None
            masks = await session.predict(image, task, DecodeOptions())
            results = tuple(PromptResult(masks=of_prompt) for of_prompt in masks)

        return SegmentResult(
            image_id=image.id,
            width=image.width,
            height=image.height,
            results=results,
            variant=choice.variant,
            model=self._variants[choice.variant].model,
            reason=choice.reason,
            cache=session.cache or CacheTier.MISS,
            timings_ms=timings.ms,
            text_engine=scored.engine if scored else None,
            threshold=scored.threshold if scored else None,
        )

    async def embed(self, image: bytes | RgbArray | str, variant: str) -> EmbedResult:
        """Embed an image, so that later prompts on its id need no encoder."""
        timings = Timings()
        choice = self._route(variant)
        opened = await self._open(image, timings)
        session = Session(self._predictors[choice.variant], timings)
        await session.predict(opened, (), DecodeOptions())
        return EmbedResult(
            image_id=opened.id,
            width=opened.width,
            height=opened.height,
            variant=choice.variant,
            model=self._variants[choice.variant].model,
            cache=session.cache or CacheTier.MISS,
            timings_ms=timings.ms,
        )

    async def models(self) -> Mapping[str, Any]:
        """What is deployed; the text engine is asked, sleeping variants are not woken."""
        text: dict[str, Any] | None = None
        if self._scorer is not None:
            info = await self._scorer.info()
            text = {
                "engine": info.engine,
                "model": info.model,
                "reason": info.reason,
                "threshold": info.threshold,
                "proposals": info.proposals.value,
            }
        variants = {
            name: {
                "model": info.model,
                "family": info.family,
                "description": info.description,
                **info.details,
            }
            for name, info in self._variants.items()
        }
        return {
            "default_variant": self._default,
            "variants": variants,
            "text": text,
            "limits": self._limits.model_dump(),
        }

    async def ready(self) -> bool:
        """Whether the default variant, and text scoring where deployed, have loaded."""
        try:
            async with asyncio.timeout(_READY_TIMEOUT_S):
                if self._scorer is not None:
                    await self._scorer.info()
                return await self._predictors[self._default].ready()
        except (SamServeError, TimeoutError):
            return False

    def _route(self, asked: str) -> Choice:
        return choose_variant(asked, self._variants, self._default)

    async def _open(self, image: bytes | RgbArray | str, timings: Timings) -> OpenImage:
        with timings.stage("open_image"):
            return await self._images.open(image)
