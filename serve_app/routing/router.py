"""Chooses the variant of a request: a pure function of its hints, the measurements and the load.

The ingress and the simulator both call `choose_variant`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from serve_app.core.errors import HintsUnmet, Overloaded, SamServeError, UnknownVariant
from serve_app.core.measurements import Profile
from serve_app.core.settings import RouterSettings
from serve_app.routing.latency import estimate_ms, idle_ms
from serve_app.routing.types import AUTO, RoutingQuery, VariantState

_QUALITY_TOLERANCE = 0.005
"""Mean IoUs that differ by less count as equal: the faster variant is chosen."""

_MAX_RELATIVE_LATENCY = 0.8
"""Largest latency, relative to the default's, of a variant that replaces the default."""


@dataclass(frozen=True, slots=True)
class _Candidate:
    """A measured variant, and what it would do with one request.

    Attributes:
        quality: mean IoU; None: not measured.
        expected_ms: estimated latency, including the wait.
    """

    name: str
    profile: Profile
    state: VariantState
    query: RoutingQuery
    quality: float | None
    expected_ms: float

    @property
    def score(self) -> float:
        """The quality to compare variants by."""
        return self.quality or 0.0

    @property
    def idle_ms(self) -> float:
        """The latency without load."""
        return idle_ms(self.profile, self.state, self.query.prompts, self.query.images)


@dataclass(frozen=True, slots=True)
class Choice:
    """A variant, and why it was chosen.

    Attributes:
        expected_ms: estimated latency including the wait; None: not measured on this host.
        degraded: a better variant was passed over because of the load.
        scale_from_zero: that variant if it is scaled to zero: starting it helps later requests.
    """

    variant: str
    reason: str
    expected_ms: float | None = None
    degraded: bool = False
    scale_from_zero: str | None = None


class NoEligibleVariant(Exception):
    """No variant may serve the request.

    Attributes:
        error: the error for the caller.
        scale_from_zero: a variant that is scaled to zero and could serve it once started.
    """

    def __init__(self, error: SamServeError, scale_from_zero: str | None = None) -> None:
        super().__init__(error, scale_from_zero)
        self.error = error
        self.scale_from_zero = scale_from_zero


def choose_variant(
    query: RoutingQuery,
    variants: Mapping[str, VariantState],
    profiles: Mapping[str, Profile],
    router: RouterSettings,
) -> Choice:
    """Choose among the deployed ``variants``.

    * A variant named by the caller is never replaced, and an alias is resolved to its variant;
      hints then only decide whether that variant is eligible.
    * ``max_latency_ms`` alone: the best variant with an estimated latency within it.
    * ``min_quality``: the fastest of the variants that reach this mean IoU (and are within
      ``max_latency_ms``).
    * no hints: the default, unless a variant of at least equal quality is running and clearly
      faster (shorter queue, or cached embedding), and scores need not be comparable.

    Raises:
        NoEligibleVariant: with `UnknownVariant`; `HintsUnmet` if the hints cannot be met even
            without load; `Overloaded` if they cannot be met because of the load or because a
            variant is scaled to zero.
    """
    named, why = _named(query.variant, variants, router)
    hints = query.max_latency_ms is not None or query.min_quality is not None
    if named is not None and not hints:
        return Choice(named, why)
    known = {
        name: _Candidate(
            name,
            profiles[name],
            state,
            query,
            query.quality(profiles[name]),
            estimate_ms(profiles[name], state, query.prompts, query.images),
        )
        for name, state in variants.items()
        if name in profiles and named in (None, name)
    }
    if not hints:
        return _default(query, known, router.default)
    if not known:
        subject = "this variant was" if named is not None else "the variants were"
        raise NoEligibleVariant(
            HintsUnmet(
                f"{subject} not measured on this host, so max_latency_ms and min_quality cannot be "
                "evaluated; omit them, or have the operator run the measure command",
                "min_quality" if query.min_quality is not None else "max_latency_ms",
            )
        )
    good = _good_enough(query, list(known.values()))
    in_time = _in_time(query, good)
    chosen = _best(query, in_time)
    reason = _hint_reason(query, chosen)
    if named is not None:
        reason = f"{why}; {reason}"
    better = _better_but_loaded(query, chosen, [c for c in good if c not in in_time])
    if better is None:
        return Choice(chosen.name, reason, chosen.expected_ms)
    return Choice(
        chosen.name,
        f"{reason}; {better.name} would be better, but its wait is too long now",
        chosen.expected_ms,
        degraded=True,
        scale_from_zero=better.name if better.state.scaled_to_zero else None,
    )


def _named(
    requested: str, variants: Mapping[str, VariantState], router: RouterSettings
) -> tuple[str | None, str]:
    """The variant that the caller named, None for ``auto``, and the reason in words."""
    if requested == AUTO:
        return None, ""
    if requested in router.aliases:
        variant = router.aliases[requested]
        return variant, f"requested as {requested}, which {variant} serves here"
    if requested not in variants:
        names = ", ".join(sorted({*variants, *router.aliases}))
        raise NoEligibleVariant(
            UnknownVariant(f"this variant is not deployed; use auto, {names}", "variant")
        )
    return requested, "requested"


def _default(query: RoutingQuery, known: Mapping[str, _Candidate], default: str) -> Choice:
    first = known.get(default)
    if first is None:
        return Choice(default, "auto: the default variant")
    found = [first]
    # Without a measured quality of the default, no other is known to be as good.
    if first.quality is not None and not query.filtered:
        found += [
            other
            for other in known.values()
            # Only an explicit request scales a variant from zero.
            if other.quality is not None
            and other.quality >= first.quality
            and not other.state.scaled_to_zero
        ]
    fastest = min(found, key=lambda candidate: candidate.expected_ms)
    if fastest is first or fastest.expected_ms > _MAX_RELATIVE_LATENCY * first.expected_ms:
        return Choice(default, "auto: the default variant", first.expected_ms)
    why = "has the image's embedding" if fastest.state.cached else "has a shorter queue"
    reason = f"auto: {fastest.name} is at least as good as {default} and {why}"
    return Choice(fastest.name, reason, fastest.expected_ms)


def _good_enough(query: RoutingQuery, known: list[_Candidate]) -> list[_Candidate]:
    """Variants that reach ``min_quality``."""
    least = query.min_quality
    if least is None:
        return known
    measured = {c.name: c.quality for c in known if c.quality is not None}
    if good := [c for c in known if measured.get(c.name, -1.0) >= least]:
        return good
    kind = "mixed" if query.mixed else query.kind
    most = max(measured, key=measured.__getitem__, default=None)
    explanation = (
        f"no quality was measured for {kind} prompts here"
        if most is None
        # Rounded down: a request with the reported value must succeed.
        else f"{most} reaches {math.floor(measured[most] * 1e3) / 1e3:.3f}"
    )
    raise NoEligibleVariant(
        HintsUnmet(
            f"no eligible variant has a mean IoU of {least:g} for {kind} prompts; {explanation}",
            "min_quality",
        )
    )


def _in_time(query: RoutingQuery, good: list[_Candidate]) -> list[_Candidate]:
    """Variants with an estimated latency within ``max_latency_ms``."""
    most = query.max_latency_ms
    if most is None:
        return good
    if found := [c for c in good if c.expected_ms + query.spent_ms <= most]:
        return found
    fastest = min(good, key=lambda c: c.idle_ms)
    if fastest.idle_ms > most:
        raise NoEligibleVariant(
            HintsUnmet(
                f"no eligible variant takes at most {most:g} ms for this request; "
                f"{fastest.name} takes about {math.ceil(fastest.idle_ms)} ms",
                "max_latency_ms",
            )
        )
    soonest = min(good, key=lambda c: c.expected_ms)
    stopped = [c for c in good if c.idle_ms <= most and c.state.scaled_to_zero]
    start = min(stopped, key=lambda c: c.idle_ms, default=None)
    raise NoEligibleVariant(
        Overloaded(
            f"no eligible variant responds within {most:g} ms at present; {soonest.name} would "
            f"in about {math.ceil(soonest.expected_ms)} ms; retry later"
        ),
        scale_from_zero=None if start is None else start.name,
    )


def _best(query: RoutingQuery, found: list[_Candidate]) -> _Candidate:
    """With ``min_quality`` the fastest; else the best, and of equally good ones the fastest."""
    if query.min_quality is None:
        most = max(c.score for c in found)
        found = [c for c in found if c.score >= most - _QUALITY_TOLERANCE]
    return min(found, key=lambda c: c.expected_ms)


def _better_but_loaded(
    query: RoutingQuery, chosen: _Candidate, late: list[_Candidate]
) -> _Candidate | None:
    """A better variant that is too slow only because of the load."""
    limit = query.max_latency_ms
    if limit is None or query.min_quality is not None:
        return None
    least = chosen.score + _QUALITY_TOLERANCE
    better = [c for c in late if c.score > least and c.idle_ms <= limit]
    return max(better, key=lambda c: c.score, default=None)


def _hint_reason(query: RoutingQuery, chosen: _Candidate) -> str:
    quality, bound = query.min_quality, query.max_latency_ms
    parts = []
    if quality is not None:
        parts.append(f"mean IoU {chosen.score:.3f} reaches min_quality {quality:g}")
    if bound is not None:
        parts.append(f"expected in {chosen.expected_ms:.0f} ms of the {bound:g} ms allowed")
    return f"{chosen.name}: " + ", ".join(parts)
