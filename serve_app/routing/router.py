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
from serve_app.routing.latency import LatencyEstimate, estimate_latency, idle_ms
from serve_app.routing.types import AUTO, RoutingQuery, VariantState

_QUALITY_TOLERANCE = 0.005
"""Mean IoUs that differ by less count as equal: the faster variant is chosen."""

_MAX_RELATIVE_LATENCY = 0.8
"""Largest latency, relative to the default's, of a variant that replaces the default."""


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
    named = _named(query.variant, variants, router)
    known = {name: profiles[name] for name in variants if name in profiles}
    if query.max_latency_ms is None and query.min_quality is None:
        if named is not None:
            return Choice(named, _named_reason(query.variant, named))
        return _default(query, variants, known, router)

    if named is not None:
        known = {name: profile for name, profile in known.items() if name == named}
    if not known:
        subject = "this variant was" if named is not None else "the variants were"
        raise NoEligibleVariant(
            HintsUnmet(
                f"{subject} not measured on this host, so max_latency_ms and min_quality cannot be "
                "evaluated; omit them, or have the operator run the measure command",
                "min_quality" if query.min_quality is not None else "max_latency_ms",
            )
        )
    good = _good_enough(query, known)
    times = {
        name: estimate_latency(profile, variants[name], query.prompts, query.images)
        for name, profile in good.items()
    }
    in_time = _in_time(query, good, variants, times)
    chosen = _best(query, in_time, good, times)
    reason = _hint_reason(query, chosen, good[chosen], times[chosen])
    if named is not None:
        reason = f"{_named_reason(query.variant, named)}; {reason}"
    better = _better_but_loaded(query, chosen, good, variants, in_time)
    if better is not None:
        reason += f"; {better} would be better, but its wait is too long now"
    start = better if better is not None and variants[better].scaled_to_zero else None
    return Choice(chosen, reason, times[chosen].total_ms, better is not None, start)


def _named(
    requested: str, variants: Mapping[str, VariantState], router: RouterSettings
) -> str | None:
    """The variant that the caller named; None for ``auto``."""
    if requested == AUTO:
        return None
    if requested in router.aliases:
        return router.aliases[requested]
    if requested not in variants:
        names = ", ".join(sorted({*variants, *router.aliases}))
        raise NoEligibleVariant(
            UnknownVariant(f"this variant is not deployed; use auto, {names}", "variant")
        )
    return requested


def _named_reason(requested: str, variant: str) -> str:
    if requested == variant:
        return "requested"
    return f"requested as {requested}, which {variant} serves here"


def _default(
    query: RoutingQuery,
    variants: Mapping[str, VariantState],
    known: Mapping[str, Profile],
    router: RouterSettings,
) -> Choice:
    default = router.default
    if default not in known:
        return Choice(default, "auto: the default variant")
    # Without a measured quality of the default, no other is known to be as good.
    least = _quality(query, known[default], math.inf)
    times = {
        name: estimate_latency(profile, variants[name], query.prompts, query.images).total_ms
        for name, profile in known.items()
        # Only an explicit request scales a variant from zero.
        if name == default
        or (
            not query.filtered
            and _quality(query, profile, -math.inf) >= least
            and not variants[name].scaled_to_zero
        )
    }
    fastest = min(times, key=times.__getitem__)
    if fastest != default and times[fastest] <= _MAX_RELATIVE_LATENCY * times[default]:
        why = "has the image's embedding" if variants[fastest].cached else "has a shorter queue"
        return Choice(
            fastest, f"auto: {fastest} is at least as good as {default} and {why}", times[fastest]
        )
    return Choice(default, "auto: the default variant", times[default])


def _good_enough(query: RoutingQuery, known: Mapping[str, Profile]) -> dict[str, Profile]:
    """Variants that reach ``min_quality``."""
    least = query.min_quality
    if least is None:
        return dict(known)
    good = {n: p for n, p in known.items() if _quality(query, p, -1.0) >= least}
    if good:
        return good
    found = {n: query.quality(p) for n, p in known.items()}
    measured = {n: iou for n, iou in found.items() if iou is not None}
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


def _in_time(
    query: RoutingQuery,
    good: Mapping[str, Profile],
    variants: Mapping[str, VariantState],
    times: Mapping[str, LatencyEstimate],
) -> list[str]:
    """Variants with an estimated latency within ``max_latency_ms``."""
    most = query.max_latency_ms
    if most is None:
        return list(good)
    found = [name for name in good if times[name].total_ms + query.spent_ms <= most]
    if found:
        return found
    idle = {
        name: idle_ms(profile, variants[name], query.prompts, query.images)
        for name, profile in good.items()
    }
    fastest = min(idle, key=idle.__getitem__)
    if idle[fastest] > most:
        raise NoEligibleVariant(
            HintsUnmet(
                f"no eligible variant takes at most {most:g} ms for this request; "
                f"{fastest} takes about {math.ceil(idle[fastest])} ms",
                "max_latency_ms",
            )
        )
    soonest = min(times, key=lambda name: times[name].total_ms)
    stopped = [name for name in good if idle[name] <= most and variants[name].scaled_to_zero]
    raise NoEligibleVariant(
        Overloaded(
            f"no eligible variant responds within {most:g} ms at present; {soonest} would "
            f"in about {math.ceil(times[soonest].total_ms)} ms; retry later"
        ),
        scale_from_zero=min(stopped, key=idle.__getitem__, default=None),
    )


def _best(
    query: RoutingQuery,
    names: list[str],
    good: Mapping[str, Profile],
    times: Mapping[str, LatencyEstimate],
) -> str:
    """With ``min_quality`` the fastest; else the best, and of equally good ones the fastest."""
    if query.min_quality is None:
        most = max(_quality(query, good[name], 0.0) for name in names)
        names = [n for n in names if _quality(query, good[n], 0.0) >= most - _QUALITY_TOLERANCE]
    return min(names, key=lambda name: times[name].total_ms)


def _better_but_loaded(
    query: RoutingQuery,
    chosen: str,
    good: Mapping[str, Profile],
    variants: Mapping[str, VariantState],
    in_time: list[str],
) -> str | None:
    """A better variant that is too slow only because of the load."""
    if query.max_latency_ms is None or query.min_quality is not None:
        return None
    mine = _quality(query, good[chosen], 0.0)
    better = {
        name: _quality(query, profile, 0.0)
        for name, profile in good.items()
        if name not in in_time
        and _quality(query, profile, 0.0) > mine + _QUALITY_TOLERANCE
        and idle_ms(profile, variants[name], query.prompts, query.images) <= query.max_latency_ms
    }
    return max(better, key=better.__getitem__, default=None)


def _hint_reason(query: RoutingQuery, chosen: str, profile: Profile, time: LatencyEstimate) -> str:
    quality, bound = query.min_quality, query.max_latency_ms
    parts = []
    if quality is not None:
        mean_iou = _quality(query, profile, 0.0)
        parts.append(f"mean IoU {mean_iou:.3f} reaches min_quality {quality:g}")
    if bound is not None:
        parts.append(f"expected in {time.total_ms:.0f} ms of the {bound:g} ms allowed")
    return f"{chosen}: " + ", ".join(parts)


def _quality(query: RoutingQuery, profile: Profile, unknown: float) -> float:
    quality = query.quality(profile)
    return unknown if quality is None else quality
