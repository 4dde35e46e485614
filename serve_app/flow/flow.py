"""Read this first: how a request becomes masks.

    request ──1 validate──▶ task ──2 open──▶ image ──3 route──▶ variant
            ──4 run the capability (`serve_app.capabilities`)──▶ results ──▶ response

The flow runs in the ingress.  It decides and delegates: pixels are decoded by
`serve_app.images.store`, the `Dispatcher` chooses the variant from measurements, load and the
request's hints, and the task's capability does the rest with a `RunContext`: candidate
regions from a `Proposer`, text scores from a `TextScorer`, masks from the `Predictor` of the
chosen variant, which alone knows embeddings (`serve_app.embeddings.predictor`).
"""

from __future__ import annotations

import math
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

from serve_app.capabilities import CAPABILITIES
from serve_app.core.capability import Capabilities, Capability, Outcome
from serve_app.core.deadline import time_limit
from serve_app.core.errors import DeadlineExceeded, Overloaded, WeightsUnavailable
from serve_app.core.inference import DecodeOptions
from serve_app.core.limits import Limits
from serve_app.core.ports import Predictor, Proposer, TextScorer
from serve_app.core.request import AUTO, EmbedRequest, SegmentRequest
from serve_app.core.types import CacheTier, EmbedResult, RgbArray, SegmentResult
from serve_app.flow.context import RunContext, Timings, VariantSession, Warnings
from serve_app.flow.readiness import Readiness, ReadinessCheck
from serve_app.images.store import ImageRef, ImageStore
from serve_app.routing.dispatcher import Dispatcher
from serve_app.routing.router import Choice
from serve_app.routing.types import RoutingQuery

_MARGIN_S, _MARGIN_SHARE = 0.1, 0.2
_USABLE = 0.9
"""Share of the caller's time that a second variant may plan with."""


class SegmentationFlow:
    """The `SegmentationService` over the ports.

    Args:
        variants, predictors: of each deployed variant, its description and its predictor.
        proposer, scorer: candidate regions, and text scores (None: not deployed).
        timeout_s: timeout of a request in seconds; None: no bound.
        checks: what must have loaded before the service is ready.
    """

    def __init__(
        self,
        *,
        capabilities: Capabilities = CAPABILITIES,
        images: ImageStore,
        variants: Mapping[str, Mapping[str, Any]],
        predictors: Mapping[str, Predictor],
        proposer: Proposer,
        scorer: TextScorer | None,
        dispatcher: Dispatcher,
        limits: Limits,
        timeout_s: float | None = None,
        checks: Sequence[ReadinessCheck] = (),
    ) -> None:
        self._capabilities = capabilities
        self._images = images
        self._variants = variants
        self._predictors = predictors
        self._proposer = proposer
        self._scorer = scorer
        self._dispatcher = dispatcher
        self._limits = limits
        self._timeout_s = timeout_s
        self._readiness = Readiness(checks)

    async def segment(self, request: SegmentRequest) -> SegmentResult:
        """Handle one request; see `serve_app.core.ports.SegmentationService.segment`."""
        async with self._deadline(request.timeout_s):
            return await self._segment(request)

    async def _segment(self, request: SegmentRequest) -> SegmentResult:
        started = time.monotonic()
        capability = self._capabilities[type(request.task)]
        request = request.within(self._limits)
        timings = Timings()
        with timings.stage("open_image"):
            image = await self._images.open(request.image, request)
        query = await self._query(capability, request, image, started)
        choice = self._dispatcher.choose(query, image.id)
        try:
            return await self._run(capability, request, image, choice, timings, started)
        except (Overloaded, WeightsUnavailable):
            other = self._dispatcher.fallback(query, image.id, choice)
            if other is None:
                raise
        return await self._run(capability, request, image, other, timings, started)

    async def _query(
        self, capability: Capability, request: SegmentRequest, image: ImageRef, started: float
    ) -> RoutingQuery:
        """The request as the router sees it: its hints, and how much work it is."""
        cost = await capability.cost(request.task, image, self._scorer)
        return RoutingQuery(
            variant=request.variant,
            max_latency_ms=request.max_latency_ms,
            min_quality=request.min_quality,
            kind=cost.prompt_type,
            mixed=cost.mixed,
            prompts=sum(cost.prompts),
            images=len(cost.prompts),
            spent_ms=(time.monotonic() - started) * 1e3,
            filtered=cost.filtered,
        )

    async def _run(
        self,
        capability: Capability,
        request: SegmentRequest,
        image: ImageRef,
        choice: Choice,
        timings: Timings,
        started: float,
    ) -> SegmentResult:
        """The request's task, by the chosen variant."""
        second = self._second(request, choice, timings)
        session = self._session(choice.variant, timings, request.return_logits)
        patience_s = self._dispatcher.router.cascade_max_ms / 1e3
        context = RunContext(
            image,
            session,
            second,
            self._proposer,
            self._scorer,
            timings,
            self._dispatcher,
            Warnings(image.warnings),
            partial(_respond_by, request, started, self._timeout_s, patience_s),
        )
        outcome: Outcome = await capability.run(request.task, context)
        timings.publish()
        return SegmentResult(
            image_id=image.id,
            width=image.width,
            height=image.height,
            results=outcome.results,
            variant=choice.variant,
            model=self._variants[choice.variant]["model"],
            reason="; ".join(filter(None, (choice.reason, outcome.note))),
            cache=session.cache or CacheTier.MISS,
            timings_ms=timings.ms,
            text_engine=outcome.text_engine,
            threshold=outcome.threshold,
            expected_ms=choice.expected_ms,
            degraded=choice.degraded or outcome.degraded,
            escalated=outcome.escalated,
            warnings=context.warnings.all,
            image=image.info,
        )

    async def embed(
        self, image: EmbedRequest | bytes | RgbArray | str, variant: str = AUTO
    ) -> EmbedResult:
        """Embed an image, so that later prompts on its id need no encoder."""
        request = EmbedRequest.of(image, variant)
        timings = Timings()
        async with self._deadline(request.timeout_s):
            with timings.stage("open_image"):
                opened = await self._images.open(request.image, request)
            choice = self._dispatcher.choose(
                RoutingQuery(variant=request.variant, prompts=0), opened.id
            )
            session = self._session(choice.variant, timings)
            await session.predict(opened, (), DecodeOptions())
        timings.publish()
        return EmbedResult(
            image_id=opened.id,
            width=opened.width,
            height=opened.height,
            variant=choice.variant,
            model=self._variants[choice.variant]["model"],
            cache=session.cache or CacheTier.MISS,
            timings_ms=timings.ms,
            warnings=opened.warnings,
            image=opened.info,
        )

    async def models(self) -> Mapping[str, Any]:
        """What is deployed; the text scorer is called, variants at zero replicas stay there."""
        text: dict[str, Any] | None = None
        if self._scorer is not None:
            info = await self._scorer.info()
            text = {
                "engine": info.engine,
                "model": info.model,
                "reason": info.reason,
                "threshold": info.threshold,
                "proposals": info.proposals.value,
                "vocabulary": info.vocabulary,
            }
        router = self._dispatcher.router
        return {
            "default_variant": router.default,
            "aliases": dict(router.aliases),
            "cascade_to": router.cascade_to,
            "variants": {name: dict(info) for name, info in self._variants.items()},
            "text": text,
            "limits": self._limits.model_dump(),
        }

    async def ready(self) -> bool:
        """Whether all parts that are always awake have loaded."""
        return await self._readiness()

    @asynccontextmanager
    async def _deadline(self, caller_timeout_s: float | None) -> AsyncIterator[None]:
        """Ends a request, and what it waits for, at the service's timeout or the caller's."""
        caller_s = _minus_network_margin(caller_timeout_s)
        timeout_s = _min_timeout(self._timeout_s, caller_s)
        try:
            async with time_limit(timeout_s) as deadline:
                yield
        except TimeoutError:
            if not deadline.expired():
                raise
            own = f"the service's timeout of {timeout_s:g} s"
            which = "the caller's timeout" if timeout_s == caller_s else own
            raise DeadlineExceeded(f"the request was not done within {which}") from None

    def _session(
        self, variant: str, timings: Timings, return_logits: bool = False
    ) -> VariantSession:
        predictor = self._predictors[variant]
        return VariantSession(
            variant, predictor, self._dispatcher.load_tracker, timings, return_logits
        )

    def _second(
        self, request: SegmentRequest, choice: Choice, timings: Timings
    ) -> VariantSession | None:
        """For requests that name neither a variant nor a quality, which would be what suffices."""
        router = self._dispatcher.router
        free = request.variant == AUTO and request.min_quality is None
        if not free or choice.variant != router.default or router.cascade_to is None:
            return None
        return self._session(router.cascade_to, timings, request.return_logits)


def _minus_network_margin(timeout_s: float | None) -> float | None:
    """The caller's timeout minus a round-trip margin, so that it receives the timeout error."""
    return None if timeout_s is None else timeout_s - min(_MARGIN_S, timeout_s * _MARGIN_SHARE)


def _min_timeout(*seconds: float | None) -> float | None:
    return min((s for s in seconds if s is not None), default=None)


def _respond_by(
    request: SegmentRequest, started: float, service_timeout_s: float | None, patience_s: float
) -> float:
    """When a response must leave, as an instant of ``time.monotonic``.

    Args:
        started: the instant at which the request came in.
        patience_s: how long from now where the caller sets no time.
    """
    wanted_s = None if request.max_latency_ms is None else request.max_latency_ms / 1e3
    caller_s = _min_timeout(_minus_network_margin(request.timeout_s), wanted_s)
    end_s = _min_timeout(service_timeout_s, caller_s)
    end = math.inf if end_s is None else started + end_s * _USABLE
    return end if caller_s is not None else min(end, time.monotonic() + patience_s)
