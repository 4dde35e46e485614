"""Read this first: how a request becomes masks.

    request ──1 open──▶ image ──2 route──▶ variant ──3 task──▶ prompts
            ──4 predict──▶ masks ──5 cascade──▶ better masks ──▶ result

The flow runs in the ingress.  It decides and delegates: pixels are decoded by
`serve_app.images.store`, candidate regions come from a `Proposer`, text scores from a
`TextScorer`, masks from the `Predictor` of the chosen variant, which alone knows embeddings
(`serve_app.embeddings.predictor`).  The `Dispatcher` chooses the variant, and the one that
unsure prompts are sent to, from measurements, load and hints.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from serve_app.capabilities.everything.run import EverythingStep
from serve_app.capabilities.text.run import TextStep
from serve_app.core.deadline import time_limit
from serve_app.core.errors import (
    DeadlineExceeded,
    InvalidPrompt,
    InvalidRequest,
    Overloaded,
    TextUnavailable,
    WeightsUnavailable,
)
from serve_app.core.limits import Limits
from serve_app.core.ports import Predictor, Proposer, TextScorer
from serve_app.core.types import (
    CacheTier,
    DecodeOptions,
    EmbedResult,
    Everything,
    Prompt,
    PromptResult,
    ProposalSource,
    RgbArray,
    SegmentRequest,
    SegmentResult,
    Task,
    TextQuery,
    TextScores,
    VariantInfo,
)
from serve_app.flow.asks import routing_query
from serve_app.flow.cascade import Cascaded, CascadeStep
from serve_app.flow.limits import check_limits
from serve_app.flow.readiness import Part, Readiness
from serve_app.flow.session import Session
from serve_app.flow.timings import Timings
from serve_app.images.store import ImageStore, OpenImage
from serve_app.routing.dispatcher import Dispatcher
from serve_app.routing.router import Choice
from serve_app.routing.types import AUTO, RoutingQuery

_WAY_S, _WAY_SHARE = 0.1, 0.2
_USABLE = 0.9
"""Share of the caller's time that a second answer may plan with."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Answered:
    """What a variant made of a task, and where its embedding was."""

    results: tuple[PromptResult, ...]
    cache: CacheTier | None
    scored: TextScores | None = None
    cascaded: Cascaded = field(default_factory=lambda: Cascaded(()))


class SegmentationFlow:
    """The `SegmentationService` over the ports.

    Args:
        images: opens and keeps images.
        variants, predictors: the deployed variants by name, and who answers for each.
        proposer, scorer: candidate regions, and text scores (None: no text here).
        dispatcher: chooses among the variants.
        limits: bounds on a request.
        timeout_s: longest time for one request; None: no bound.
        parts: what must have loaded before the service is ready.
    """

    def __init__(
        self,
        *,
        images: ImageStore,
        variants: Mapping[str, VariantInfo],
        predictors: Mapping[str, Predictor],
        proposer: Proposer,
        scorer: TextScorer | None,
        dispatcher: Dispatcher,
        limits: Limits,
        timeout_s: float | None = None,
        parts: Sequence[Part] = (),
    ) -> None:
        self._images = images
        self._variants = variants
        self._predictors = predictors
        self._proposer = proposer
        self._scorer = scorer
        self._dispatcher = dispatcher
        self._limits = limits
        self._timeout_s = timeout_s
        self._readiness = Readiness(parts)

    async def segment(self, request: SegmentRequest) -> SegmentResult:
        """Answer one request; see `serve_app.core.ports.SegmentationService.segment`."""
        async with self._deadline(request.timeout_s):
            return await self._segment(request)

    async def _segment(self, request: SegmentRequest) -> SegmentResult:
        started = time.monotonic()
        timings = Timings()
        check_limits(request.task, self._limits)
        if request.return_logits and isinstance(request.task, Everything):
            raise InvalidRequest("return_logits does not go with everything", "return_logits")
        image = await self._open(request.image, timings)
        source = await self._text_source(request.task)
        ask = routing_query(request, image, source, (time.monotonic() - started) * 1e3)
        choice = self._dispatcher.choose(ask, image.id)
        try:
            done = await self._answer(request, image, choice, timings, started)
        except (Overloaded, WeightsUnavailable):
            other = self._dispatcher.fallback(ask, image.id, choice)
            if other is None:
                raise
            choice = other
            done = await self._answer(request, image, choice, timings, started)
        timings.publish()
        scored = done.scored
        return SegmentResult(
            image_id=image.id,
            width=image.width,
            height=image.height,
            results=done.results,
            variant=choice.variant,
            model=self._variants[choice.variant].model,
            reason="; ".join(filter(None, (choice.reason, done.cascaded.note))),
            cache=done.cache or CacheTier.MISS,
            timings_ms=timings.ms,
            text_engine=scored.engine if scored else None,
            threshold=scored.threshold if scored else None,
            expected_ms=choice.expected_ms,
            degraded=choice.degraded or done.cascaded.degraded,
            escalated=done.cascaded.asked,
        )

    async def _answer(
        self,
        request: SegmentRequest,
        image: OpenImage,
        choice: Choice,
        timings: Timings,
        started: float,
    ) -> _Answered:
        """The request's task, by the chosen variant."""
        session = self._session(choice.variant, timings, request.return_logits)
        task = request.task
        results: tuple[PromptResult, ...]
        if isinstance(task, Everything):
            step = EverythingStep(self._proposer, timings)
            results = (PromptResult(masks=await step.run(image, task, session)),)
            return _Answered(results, session.cache)
        if isinstance(task, TextQuery):
            if self._scorer is None:
                raise TextUnavailable("this graph is deployed without text scoring", "text")
            text = TextStep(self._proposer, self._scorer, timings)
            results, scored = await text.run(image, task, session)
            return _Answered(results, session.cache, scored=scored)
        _check_inside(task, image)
        cascaded = Cascaded(await session.predict(image, task, DecodeOptions()))
        second = self._second(request, choice)
        if second is not None:
            again = self._session(second, timings, request.return_logits)
            patience_s = self._dispatcher.router.cascade_max_ms / 1e3
            until = _latest(request, started, self._timeout_s, patience_s)
            step_two = CascadeStep(self._dispatcher, choice.variant, again)
            cascaded = await step_two.run(image, task, cascaded.answers, until)
        results = tuple(
            PromptResult(masks=of_prompt, variant=second if i in cascaded.kept else None)
            for i, of_prompt in enumerate(cascaded.answers)
        )
        return _Answered(results, session.cache, cascaded=cascaded)

    async def embed(self, image: bytes | RgbArray | str, variant: str) -> EmbedResult:
        """Embed an image, so that later prompts on its id need no encoder."""
        timings = Timings()
        async with self._deadline(None):
            opened = await self._open(image, timings)
            choice = self._dispatcher.choose(RoutingQuery(variant=variant, prompts=0), opened.id)
            session = self._session(choice.variant, timings)
            await session.predict(opened, (), DecodeOptions())
        timings.publish()
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
            "default_variant": self._dispatcher.router.default,
            "aliases": dict(self._dispatcher.router.aliases),
            "cascade_to": self._dispatcher.router.cascade_to,
            "variants": variants,
            "text": text,
            "limits": self._limits.model_dump(),
        }

    async def ready(self) -> bool:
        """Whether all parts that are always awake have loaded."""
        return await self._readiness()

    @asynccontextmanager
    async def _deadline(self, asked_s: float | None) -> AsyncIterator[None]:
        """Ends a request, and what it waits for, at the service's time or the caller's."""
        timeout_s = _sooner(self._timeout_s, _without_way(asked_s))
        try:
            async with time_limit(timeout_s) as deadline:
                yield
        except TimeoutError:
            if not deadline.expired():
                raise
            raise DeadlineExceeded(f"the answer was not ready within {timeout_s:.3g} s") from None

    def _session(self, variant: str, timings: Timings, return_logits: bool = False) -> Session:
        predictor = self._predictors[variant]
        return Session(variant, predictor, self._dispatcher.load_tracker, timings, return_logits)

    async def _text_source(self, task: Task) -> ProposalSource | None:
        """Where a text's candidates will come from, which decides how much work it is."""
        if not isinstance(task, TextQuery) or self._scorer is None:
            return None
        return task.proposals or (await self._scorer.info()).proposals

    def _second(self, request: SegmentRequest, choice: Choice) -> str | None:
        """Who is asked what the chosen variant is unsure of; None: nobody.

        Whoever names a variant or a quality has said what suffices.
        """
        router = self._dispatcher.router
        free = request.variant == AUTO and request.min_quality is None
        if free and choice.variant == router.default and router.cascade_to is not None:
            return router.cascade_to
        return None

    async def _open(self, image: bytes | RgbArray | str, timings: Timings) -> OpenImage:
        with timings.stage("open_image"):
            return await self._images.open(image)


def _check_inside(prompts: Sequence[Prompt], image: OpenImage) -> None:
    for i, prompt in enumerate(prompts):
        try:
            prompt.check_inside(image.width, image.height)
        except InvalidPrompt as exc:
            raise exc.at(f"prompts[{i}]") from None


def _without_way(asked_s: float | None) -> float | None:
    """The caller's time less the way here and back.

    Its clock is ahead of ours by that: we stop a little sooner, so that it hears why.
    """
    return None if asked_s is None else asked_s - min(_WAY_S, asked_s * _WAY_SHARE)


def _sooner(*seconds: float | None) -> float | None:
    return min((s for s in seconds if s is not None), default=None)


def _latest(
    request: SegmentRequest, started: float, service_timeout_s: float | None, patience_s: float
) -> float:
    """When an answer must go out, as an instant of ``time.monotonic``.

    Args:
        started: the instant at which the request came in.
        patience_s: how long from now where the caller does not say.
    """
    wanted_s = None if request.max_latency_ms is None else request.max_latency_ms / 1e3
    said_s = _sooner(_without_way(request.timeout_s), wanted_s)
    end_s = _sooner(service_timeout_s, said_s)
    end = math.inf if end_s is None else started + end_s * _USABLE
    return end if said_s is not None else min(end, time.monotonic() + patience_s)
