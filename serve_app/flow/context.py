"""What a capability's run works with: the chosen variant, the cascade, the other deployments."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, replace

from serve_app.core.capability import Escalation, Image, Masks
from serve_app.core.deadline import time_limit
from serve_app.core.errors import UnknownImage
from serve_app.core.inference import DecodeOptions, Prediction, Proposal
from serve_app.core.ports import Predictor, Proposer, TextScorer
from serve_app.core.types import CacheTier, Prompt, ProposalSource, ResponseWarning, RgbArray
from serve_app.images.store import ImageRef
from serve_app.routing.cascade import select_for_escalation, should_replace
from serve_app.routing.dispatcher import Dispatcher
from serve_app.routing.load_tracker import LoadTracker
from serve_app.telemetry.context import span
from serve_app.telemetry.metrics import ESCALATIONS, STAGE_SECONDS

log = logging.getLogger(__name__)


class Warnings:
    """The warnings of one request: one for each code."""

    def __init__(self, found: Sequence[ResponseWarning] = ()) -> None:
        self._by_code = {warning.code: warning for warning in found}

    def add(self, code: str, message: str, field: str | None = None) -> None:
        """Add a warning; for a known code it only counts."""
        known = self._by_code.get(code)
        if known is None:
            self._by_code[code] = ResponseWarning(code=code, message=message, field=field)
        else:
            self._by_code[code] = replace(known, count=known.count + 1)

    @property
    def all(self) -> tuple[ResponseWarning, ...]:
        """In the order in which their codes came up."""
        return tuple(self._by_code.values())


class Timings:
    """Adds up the time of each stage of one request."""

    def __init__(self) -> None:
        self._ms: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time a block, which is a span too; blocks of one name add up."""
        started = time.perf_counter()
        try:
            with span(name):
                yield
        finally:
            self.add({name: (time.perf_counter() - started) * 1e3})

    def add(self, timings_ms: Mapping[str, float]) -> None:
        """Add what another process measured."""
        for name, value in timings_ms.items():
            self._ms[name] = self._ms.get(name, 0.0) + value

    def publish(self) -> None:
        """Record the metrics; once, when the request is done."""
        for name, value in self._ms.items():
            STAGE_SECONDS.observe(value / 1e3, stage=name)

    @property
    def ms(self) -> dict[str, float]:
        """Milliseconds by stage, to the microsecond."""
        return {name: round(value, 3) for name, value in self._ms.items()}


@dataclass(slots=True)
class VariantSession:
    """Predictions of one request by one variant.

    Attributes:
        cache: the tier that held the embedding of the first image.
        known: ids of the images that the variant has embedded.
    """

    variant: str
    predictor: Predictor
    load_tracker: LoadTracker
    timings: Timings
    return_logits: bool
    cache: CacheTier | None = None
    known: set[str] = field(default_factory=set)

    async def predict(
        self, image: ImageRef, prompts: Sequence[Prompt], options: DecodeOptions
    ) -> Masks:
        """Masks for each prompt.  Pixels are sent only if the variant does not know the image.

        Raises:
            UnknownImage: the image could not be embedded.
        """
        options = replace(options, return_logits=self.return_logits)
        # A new image's pixels are sent at once, which saves a round trip.
        new = image.new and image.id not in self.known
        pixels = await image.pixels() if new else None
        with self.timings.stage("predict"):
            prediction = await self._call(image, pixels, prompts, options)
            if prediction is None:
                self.load_tracker.forget(self.variant, image.id)
                prediction = await self._call(image, await image.pixels(), prompts, options)
        if prediction is None:
            raise UnknownImage("the image could not be embedded: send it again", "image_id")
        self.known.add(image.id)
        self.timings.add(prediction.timings_ms)
        if self.cache is None:
            self.cache = prediction.cache
        return prediction.masks

    async def _call(
        self,
        image: ImageRef,
        pixels: RgbArray | None,
        prompts: Sequence[Prompt],
        options: DecodeOptions,
    ) -> Prediction | None:
        """One call, counted as load until it has ended in any way."""
        count = len(prompts)
        if options.most_points is not None:
            count = min(count, options.most_points)
        ticket = self.load_tracker.acquire(
            self.variant, image.id, count, time.monotonic(), most=options.most_points is not None
        )
        prediction: Prediction | None = None
        try:
            prediction = await self.predictor.predict(image.id, pixels, prompts, options)
        finally:
            self.load_tracker.release(ticket, time.monotonic(), prediction)
        return prediction


@dataclass(slots=True)
class RunContext:
    """A `serve_app.core.capability.Context` over the ports.

    Attributes:
        session, second: of the chosen variant, and of the cascade's second one (None: the request
            allows none).
        dispatcher: which prompts are escalated, and what the second variant would take.
        warnings: of the image so far, and then of the run.
        respond_by: gives the instant of ``time.monotonic`` at which the response must leave, as
            seen when it is called.
    """

    image: ImageRef
    session: VariantSession
    second: VariantSession | None
    proposer: Proposer
    scorer: TextScorer | None
    timings: Timings
    dispatcher: Dispatcher
    warnings: Warnings
    respond_by: Callable[[], float]

    def warn(self, code: str, message: str, field: str | None = None) -> None:
        """Add a warning to the response; see `Warnings.add`."""
        self.warnings.add(code, message, field)

    def stage(self, name: str) -> AbstractContextManager[None]:
        """Time a block; see `Timings.stage`."""
        return self.timings.stage(name)

    async def predict(
        self, image: Image, prompts: Sequence[Prompt], options: DecodeOptions
    ) -> Masks:
        """Masks of each prompt by the chosen variant."""
        return await self.session.predict(image, prompts, options)  # type: ignore[arg-type]

    async def propose(
        self, image: Image, source: ProposalSource, points_per_side: int
    ) -> tuple[Proposal, ...]:
        """Candidate regions; the pixels are sent only to sources that look at them."""
        pixels = None if source is ProposalSource.GRID else await image.pixels()
        size = (image.width, image.height)
        return await self.proposer.propose(pixels, size, source, points_per_side)

    async def escalate(self, prompts: Sequence[Prompt], masks: Masks) -> Escalation:
        """Replace masks of unsure prompts where the second variant's are better, if time allows."""
        if self.second is None:
            return Escalation(masks=masks)
        image, second = self.image, self.second.variant
        rules = self.dispatcher.escalation(self.session.variant, second)
        router = self.dispatcher.router
        now = self.dispatcher.variant_state(second, image.id)
        picked = select_for_escalation(
            prompts, masks, rules, share=router.cascade_share, cached=now.cached
        )
        if not picked:
            return Escalation(masks=masks)
        left_ms = (self.respond_by() - time.monotonic()) * 1e3
        unsure = f"unsure of {len(picked)} of {len(prompts)} prompts"
        needed_ms = self.dispatcher.expected_ms(second, image.id, len(picked))
        if needed_ms > left_ms:
            if router.cascade_scales_from_zero and now.scaled_to_zero:
                self.dispatcher.scale_from_zero(second)
            ESCALATIONS.inc(outcome="no_time")
            note = f"{unsure}, but {second} would take {needed_ms:.0f} ms more"
            return Escalation(masks=masks, note=note, degraded=True)
        try:
            # The first masks are there already: no error or delay of the second may lose them.
            async with time_limit(left_ms / 1e3):
                again = await self.second.predict(
                    image, [prompts[i] for i in picked], DecodeOptions()
                )
        except UnknownImage:
            ESCALATIONS.inc(outcome="failed")
            note = f"{unsure}, but the image is no longer kept for {second}"
            return Escalation(masks=masks, note=note)
        except Exception:
            ESCALATIONS.inc(outcome="failed")
            log.warning("the cascade's second variant failed or timed out", exc_info=True)
            note = f"{unsure}, but {second} did not respond in time"
            return Escalation(masks=masks, sent=len(picked), note=note, degraded=True)
        ESCALATIONS.inc(outcome="answered")
        merged, replaced = list(masks), set()
        for index, of_second in zip(picked, again, strict=True):
            if should_replace(prompts[index], masks[index], of_second, rules):
                merged[index] = of_second
                replaced.add(index)
        return Escalation(
            masks=tuple(merged),
            replaced=frozenset(replaced),
            variant=second,
            sent=len(picked),
            note=f"{unsure}, escalated to {second}, {len(replaced)} of its masks kept",
        )
