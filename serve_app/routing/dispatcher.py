"""The router at work in one process: ledger, load and settings behind a few questions."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field, replace

from serve_app.core.measurements import Escalation, Form, Profile
from serve_app.core.settings import RouterSettings
from serve_app.routing.board import Capacity, LoadBoard
from serve_app.routing.facts import AUTO, Ask, Situation, expected
from serve_app.routing.router import Choice, Refused, choose_variant

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Knowledge:
    """What was measured: the ledger's valid part.

    Attributes:
        profiles: by variant.
        escalation: by ``first>second`` and form of prompt.
    """

    profiles: Mapping[str, Profile] = field(default_factory=dict)
    escalation: Mapping[str, Mapping[Form, Escalation]] = field(default_factory=dict)


class Dispatcher:
    """Chooses variants, and wakes those that sleep.

    Args:
        router: default variant, aliases, cascade.
        capacities: how each deployed variant is set up.
        knowledge: what the ledger says of them.
        wakers: start a sleeping variant, by variant.
    """

    def __init__(
        self,
        router: RouterSettings,
        capacities: Mapping[str, Capacity],
        knowledge: Knowledge,
        wakers: Mapping[str, Callable[[], Awaitable[None]]],
    ) -> None:
        self.router = router
        self.board = LoadBoard(capacities, knowledge.profiles)
        self._knowledge = knowledge
        self._wakers = wakers
        self._waking: dict[str, asyncio.Task[None]] = {}

    def choose(self, ask: Ask, image_id: str) -> Choice:
        """See `choose_variant`; the load is that of this moment.

        Raises:
            UnknownVariant, HintsUnmet, Overloaded: no variant may answer.
        """
        try:
            choice = choose_variant(
                ask,
                self.board.situations(image_id, time.monotonic()),
                self._knowledge.profiles,
                self.router,
            )
            if choice.wake is not None:
                self.wake(choice.wake)
            return choice
        except Refused as refused:
            if refused.wake is not None:
                self.wake(refused.wake)
            raise refused.error from None

    def instead(self, ask: Ask, image_id: str, failed: Choice) -> Choice | None:
        """Who answers when the chosen variant cannot take the request after all.

        None where nobody may: the caller named a variant or a quality, or nobody else is awake.
        """
        if ask.variant != AUTO or ask.min_quality is not None:
            return None
        situations = self.board.situations(image_id, time.monotonic())
        others = {
            name: now
            for name, now in situations.items()
            if name != failed.variant and not now.asleep
        }
        if not others:
            return None
        try:
            choice = choose_variant(
                ask, others, self._knowledge.profiles, self.router.among(list(others))
            )
        except Refused:
            return None
        reason = f"{failed.variant} cannot take it now; {choice.reason}"
        return replace(choice, reason=reason, degraded=True)

    def situation(self, variant: str, image_id: str) -> Situation:
        """A variant as a request on the image would find it now."""
        return self.board.situation(variant, image_id, time.monotonic())

    def expected_ms(self, variant: str, image_id: str, prompts: int) -> float:
        """How long a measured variant would take now."""
        profile = self._knowledge.profiles[variant]
        return expected(profile, self.situation(variant, image_id), prompts).total_ms

    def escalation(self, first: str, second: str) -> Mapping[Form, Escalation]:
        """The cascade's rules from one variant to another; empty: none."""
        if second not in self._knowledge.profiles:
            return {}
        return self._knowledge.escalation.get(f"{first}>{second}", {})

    def wake(self, variant: str) -> None:
        """Start a sleeping variant in the background; once, however often it is asked."""
        running = self._waking.get(variant)
        if running is None or running.done():
            self._waking[variant] = asyncio.get_running_loop().create_task(self._wake(variant))

    async def _wake(self, variant: str) -> None:
        try:
            await self._wakers[variant]()
        except Exception:
            # Nobody waits for this: whatever is wrong, the next request meets it itself.
            log.warning("variant %s could not be woken", variant, exc_info=True)
