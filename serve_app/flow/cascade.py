"""The cascade: prompts of which the first variant was unsure go to a second one."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from typing import Protocol

from serve_app.core.capability import Escalation, Masks
from serve_app.core.deadline import time_limit
from serve_app.core.errors import UnknownImage
from serve_app.core.inference import DecodeOptions
from serve_app.core.types import Prompt
from serve_app.images.store import ImageRef
from serve_app.routing.cascade import select_for_escalation, should_replace
from serve_app.routing.dispatcher import Dispatcher
from serve_app.telemetry.metrics import ESCALATIONS

log = logging.getLogger(__name__)


class Session(Protocol):
    """Predictions by one variant."""

    variant: str

    async def predict(
        self, image: ImageRef, prompts: Sequence[Prompt], options: DecodeOptions
    ) -> Masks:
        """Masks of each prompt."""
        ...


class Cascade:
    """Improves masks of a first variant by those of a second.

    Args:
        dispatcher: which prompts are escalated, and what the second variant would take.
        first: the variant that made the masks.
        second: the session of the second variant.
    """

    def __init__(self, dispatcher: Dispatcher, first: str, second: Session) -> None:
        self._dispatcher = dispatcher
        self._first = first
        self._second = second

    async def improve(
        self, image: ImageRef, prompts: Sequence[Prompt], masks: Masks, respond_by: float
    ) -> Escalation:
        """Replace masks of unsure prompts where the second variant's are better.

        Args:
            respond_by: instant of ``time.monotonic`` at which the response must leave.
        """
        second = self._second.variant
        rules = self._dispatcher.escalation(self._first, second)
        router = self._dispatcher.router
        now = self._dispatcher.variant_state(second, image.id)
        picked = select_for_escalation(
            prompts, masks, rules, share=router.cascade_share, cached=now.cached
        )
        if not picked:
            return Escalation(masks=masks)
        left_ms = (respond_by - time.monotonic()) * 1e3
        unsure = f"unsure of {len(picked)} of {len(prompts)} prompts"
        needed_ms = self._dispatcher.expected_ms(second, image.id, len(picked))
        if needed_ms > left_ms:
            if router.cascade_scales_from_zero and now.scaled_to_zero:
                self._dispatcher.scale_from_zero(second)
            ESCALATIONS.inc(outcome="no_time")
            note = f"{unsure}, but {second} would take {needed_ms:.0f} ms more"
            return Escalation(masks=masks, note=note, degraded=True)
        try:
            # The first masks are there already: no error or delay of the second may lose them.
            async with time_limit(left_ms / 1e3):
                again = await self._second.predict(
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
