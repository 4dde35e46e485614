"""Read this first: how a request becomes masks.

    request ──1 open──▶ image ──2 route──▶ variant ──3 task──▶ prompts
            ──4 predict──▶ masks ──▶ result

The flow runs in the ingress.  It decides and delegates: pixels are decoded by `steps.images`,
candidate regions come from a `Proposer`, text scores from a `TextScorer`, masks from the
`Predictor` of the chosen variant, which alone knows embeddings (`serve_app.predictor`).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

from serve_app.domain.errors import DeadlineExceeded, InvalidPrompt, InvalidRequest, TextUnavailable
from serve_app.domain.limits import Limits
from serve_app.domain.settings import RouterSettings
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

log = logging.getLogger(__name__)


class SegmentationFlow:
    """The `SegmentationService` over the ports.

    Args:
        images: opens and keeps images.
        variants, predictors: the deployed variants by name, and who answers for each.
        proposer, scorer: candidate regions, and text scores (None: no text here).
        router: the default variant and aliases.
        limits: bounds on a request.
        timeout_s: longest time for one request; None: no bound.
        checks: asked by `ready`; each answers whether a part has loaded.
    """

    def __init__(
        self,
        *,
        images: ImageStore,
        variants: Mapping[str, VariantInfo],
        predictors: Mapping[str, Predictor],
        proposer: Proposer,
        scorer: TextScorer | None,
        router: RouterSettings,
        limits: Limits,
        timeout_s: float | None = None,
        checks: Sequence[Callable[[], Awaitable[bool]]] = (),
    ) -> None:
        self._images = images
        self._variants = variants
        self._predictors = predictors
        self._proposer = proposer
        self._scorer = scorer
        self._router = router
        self._limits = limits
        self._timeout_s = timeout_s
        self._checks = checks

    async def segment(self, request: SegmentRequest) -> SegmentResult:
        """Answer one request; see `serve_app.ports.SegmentationService.segment`."""
        async with self._deadline():
            return await self._segment(request)

    async def _segment(self, request: SegmentRequest) -> SegmentResult:
        timings = Timings()
        check_limits(request.task, self._limits)
        if request.return_logits and isinstance(request.task, Everything):
            raise InvalidRequest("return_logits does not go with everything", "return_logits")
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
        async with self._deadline():
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
            "default_variant": self._router.default,
            "aliases": dict(self._router.aliases),
            "variants": variants,
            "text": text,
            "limits": self._limits.model_dump(),
        }

    async def ready(self) -> bool:
        """Whether all parts that are always awake have loaded."""
        try:
            async with asyncio.timeout(_READY_TIMEOUT_S):
                return all(await asyncio.gather(*(check() for check in self._checks)))
        except Exception:
            # Whatever is wrong with a part, the answer to this question is "not ready".
            log.debug("not ready", exc_info=True)
            return False

    @asynccontextmanager
    async def _deadline(self) -> AsyncIterator[None]:
        """Bounds a request; what it waits for is cancelled."""
        try:
            async with asyncio.timeout(self._timeout_s):
                yield
        except TimeoutError:
            raise DeadlineExceeded(
                f"the answer was not ready within {self._timeout_s:g} s"
            ) from None

    def _route(self, asked: str) -> Choice:
        return choose_variant(asked, self._variants, self._router)

    async def _open(self, image: bytes | RgbArray | str, timings: Timings) -> OpenImage:
        with timings.stage("open_image"):
            return await self._images.open(image)
