"""The router of one process: combines settings, measurements and the present load."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace

from serve_app.core.measurements import Escalation, Measurements, PromptType
from serve_app.core.settings import RouterSettings
from serve_app.routing.latency import estimate_ms
from serve_app.routing.load_tracker import Capacity, LoadTracker
from serve_app.routing.router import Choice, NoEligibleVariant, choose_variant
from serve_app.routing.types import AUTO, RoutingQuery, VariantState

log = logging.getLogger(__name__)


class Dispatcher:
    """Chooses among the variants that have a capacity, and starts those that are scaled to zero."""

    def __init__(
        self,
        router: RouterSettings,
        capacities: Mapping[str, Capacity],
        measurements: Measurements,
        starters: Mapping[str, Callable[[], Awaitable[None]]],
    ) -> None:
        self.router = router
        self.load_tracker = LoadTracker(capacities, measurements.profiles)
        self._measurements = measurements
        self._starters = starters
        self._starting: dict[str, asyncio.Task[None]] = {}

    def choose(self, query: RoutingQuery, image_id: str) -> Choice:
        """See `choose_variant`; uses the present load.

        Raises:
            UnknownVariant, HintsUnmet, Overloaded: no variant is eligible.
        """
        try:
            choice = choose_variant(
                query,
                self.load_tracker.variant_states(image_id, time.monotonic()),
                self._measurements.profiles,
                self.router,
            )
        except NoEligibleVariant as exc:
            if exc.scale_from_zero is not None:
                self.scale_from_zero(exc.scale_from_zero)
            raise exc.error from None
        if choice.scale_from_zero is not None:
            self.scale_from_zero(choice.scale_from_zero)
        return choice

    def fallback(self, query: RoutingQuery, image_id: str, failed: Choice) -> Choice | None:
        """Choose another variant after the chosen one failed.

        None if the caller requested a variant or a quality, or if no other variant is running.
        """
        if query.variant != AUTO or query.min_quality is not None:
            return None
        states = self.load_tracker.variant_states(image_id, time.monotonic())
        running = {name: state for name, state in states.items() if not state.scaled_to_zero}
        others = {name: state for name, state in running.items() if name != failed.variant}
        if not others:
            return None
        try:
            choice = choose_variant(
                query, others, self._measurements.profiles, self.router.among(list(others))
            )
        except NoEligibleVariant:
            return None
        reason = f"{failed.variant} is unavailable; {choice.reason}"
        return replace(choice, reason=reason, degraded=True)

    def variant_state(self, variant: str, image_id: str) -> VariantState:
        """Present state of a variant for a request on the image."""
        return self.load_tracker.variant_state(variant, image_id, time.monotonic())

    def expected_ms(self, variant: str, image_id: str, prompts: int) -> float:
        """Present latency estimate of a measured variant, in milliseconds."""
        profile = self._measurements.profiles[variant]
        return estimate_ms(profile, self.variant_state(variant, image_id), prompts)

    def escalation(self, first: str, second: str) -> Mapping[PromptType, Escalation]:
        """The cascade's rules from one variant to another; empty: none."""
        if second not in self._measurements.profiles:
            return {}
        return self._measurements.escalation.get(f"{first}>{second}", {})

    def scale_from_zero(self, variant: str) -> None:
        """Start a variant in the background; repeated calls join the start in progress."""
        running = self._starting.get(variant)
        if running is None or running.done():
            self._starting[variant] = asyncio.get_running_loop().create_task(self._start(variant))

    async def _start(self, variant: str) -> None:
        try:
            await self._starters[variant]()
        except Exception:
            # This task is not awaited: the next request meets the same error and returns it.
            log.warning("variant %s could not be scaled from zero", variant, exc_info=True)
