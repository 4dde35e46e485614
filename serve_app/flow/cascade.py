"""Step 5: prompts of which the first variant was unsure go to a second one."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass

from serve_app.core.deadline import time_limit
from serve_app.core.errors import UnknownImage
from serve_app.core.types import DecodeOptions, Mask, Prompt
from serve_app.flow.session import Session
from serve_app.images.store import OpenImage
from serve_app.routing.cascade import select_for_escalation, should_replace
from serve_app.routing.dispatcher import Dispatcher
from serve_app.telemetry.catalogue import ESCALATIONS

log = logging.getLogger(__name__)

Answers = tuple[tuple[Mask, ...], ...]


@dataclass(frozen=True, slots=True)
class Cascaded:
    """What came out.

    Attributes:
        answers: the masks of each prompt, of whoever answers it better.
        kept: indices of those that are the second variant's.
        asked: how many prompts the second variant was asked.
        note: for the answer's reason; empty if the first variant was sure.
        degraded: it was unsure, and load or time kept the second from answering.
    """

    answers: Answers
    kept: frozenset[int] = frozenset()
    asked: int = 0
    note: str = ""
    degraded: bool = False


class CascadeStep:
    """Asks the second variant what is worth it, if there is time."""

    def __init__(self, dispatcher: Dispatcher, first: str, second: Session) -> None:
        self._dispatcher = dispatcher
        self._first = first
        self._second = second

    async def run(
        self,
        image: OpenImage,
        prompts: Sequence[Prompt],
        answers: Answers,
        until: float,
    ) -> Cascaded:
        """Improve ``answers`` to ``prompts``.

        Args:
            until: instant of ``time.monotonic`` at which the answer goes out.
        """
        second = self._second.variant
        rules = self._dispatcher.escalation(self._first, second)
        router = self._dispatcher.router
        now = self._dispatcher.variant_state(second, image.id)
        picked = select_for_escalation(
            prompts, answers, rules, share=router.cascade_share, cached=now.cached
        )
        if not picked:
            return Cascaded(answers)
        left_ms = (until - time.monotonic()) * 1e3
        unsure = f"unsure of {len(picked)} of {len(prompts)} prompts"
        needed_ms = self._dispatcher.expected_ms(second, image.id, len(picked))
        if needed_ms > left_ms:
            if router.cascade_scales_from_zero and now.scaled_to_zero:
                self._dispatcher.scale_from_zero(second)
            ESCALATIONS.inc(outcome="no_time")
            note = f"{unsure}, but {second} would take {needed_ms:.0f} ms more"
            return Cascaded(answers, note=note, degraded=True)
        try:
            # The first answer is there already: no fault or delay of the second may lose it.
            async with time_limit(left_ms / 1e3):
                again = await self._second.predict(
                    image, [prompts[i] for i in picked], DecodeOptions()
                )
        except UnknownImage:
            ESCALATIONS.inc(outcome="failed")
            note = f"{unsure}, but the image is no longer kept for {second}"
            return Cascaded(answers, note=note)
        except Exception:
            ESCALATIONS.inc(outcome="failed")
            log.warning("the second variant did not answer", exc_info=True)
            note = f"{unsure}, but {second} did not answer in time"
            return Cascaded(answers, asked=len(picked), note=note, degraded=True)
        ESCALATIONS.inc(outcome="answered")
        merged, kept = list(answers), set()
        for index, masks in zip(picked, again, strict=True):
            if should_replace(prompts[index], answers[index], masks, rules):
                merged[index] = masks
                kept.add(index)
        note = f"{unsure}, {second} asked again, {len(kept)} of its answers kept"
        return Cascaded(tuple(merged), frozenset(kept), len(picked), note)
