"""Which variant answers a request: a pure function of its hints, the ledger and the load.

The ingress and the simulator call the same `choose_variant`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from serve_app.core.errors import HintsUnmet, Overloaded, SamServeError, UnknownVariant
from serve_app.core.measurements import Profile
from serve_app.core.settings import RouterSettings
from serve_app.routing.facts import AUTO, Ask, Expected, Situation, expected, idle_ms

_SAME_QUALITY = 0.005
"""Mean IoUs nearer than this count as equal: the faster variant is then taken."""

_WORTH_IT = 0.8
"""A variant that nobody asked for must take at most this part of the default's time."""


@dataclass(frozen=True, slots=True)
class Choice:
    """A variant, and why it was chosen.

    Attributes:
        expected_ms: how long it should take, waiting included; None: not measured here.
        degraded: a better variant would have been taken but for the load.
        wake: that variant, if it sleeps: the next request could have it.
    """

    variant: str
    reason: str
    expected_ms: float | None = None
    degraded: bool = False
    wake: str | None = None


class Refused(Exception):
    """No variant may answer.

    Attributes:
        error: what the caller is told.
        wake: a sleeping variant that could answer once it is awake.
    """

    def __init__(self, error: SamServeError, wake: str | None = None) -> None:
        super().__init__(error, wake)
        self.error = error
        self.wake = wake


def choose_variant(
    ask: Ask,
    variants: Mapping[str, Situation],
    profiles: Mapping[str, Profile],
    router: RouterSettings,
) -> Choice:
    """Choose among the deployed ``variants``.

    * A variant named by the caller is never changed, an alias is answered by the variant that it
      stands for; hints then only decide whether it may answer.
    * ``max_latency_ms`` alone: the best variant that is expected to answer in time.
    * ``min_quality``: of those whose mean IoU reaches it (and that are in time), the soonest.
    * no hints: the default, unless a variant at least as good is awake and answers clearly sooner
      (its queue is shorter, or it has the image's embedding), and scores need not be comparable.

    Raises:
        Refused: with `UnknownVariant`; `HintsUnmet` if the hints could not be met even without
            load; `Overloaded` if only the load, or a sleeping variant, stands in the way.
    """
    named = _named(ask.variant, variants, router)
    known = {name: profiles[name] for name in variants if name in profiles}
    if ask.max_latency_ms is None and ask.min_quality is None:
        if named is not None:
            return Choice(named, _named_reason(ask.variant, named))
        return _default(ask, variants, known, router)

    if named is not None:
        known = {name: profile for name, profile in known.items() if name == named}
    if not known:
        who = "this variant is" if named is not None else "the variants are"
        raise Refused(
            HintsUnmet(
                f"{who} not measured on this host, so max_latency_ms and min_quality cannot be "
                "judged; leave them out, or let the operator run the measure command",
                "min_quality" if ask.min_quality is not None else "max_latency_ms",
            )
        )
    good = _good_enough(ask, known)
    times = {name: expected(good[name], variants[name], ask.prompts, ask.images) for name in good}
    in_time = _in_time(ask, good, variants, times)
    chosen = _best(ask, in_time, good, times)
    reason = _hint_reason(ask, chosen, good[chosen], times[chosen])
    if named is not None:
        reason = f"{_named_reason(ask.variant, named)}; {reason}"
    better = _kept_away(ask, chosen, good, variants, in_time)
    if better is not None:
        reason += f"; {better} would be better, but its wait is too long now"
    wake = better if better is not None and variants[better].asleep else None
    return Choice(chosen, reason, times[chosen].total_ms, better is not None, wake)


def _named(asked: str, variants: Mapping[str, Situation], router: RouterSettings) -> str | None:
    """The variant that the caller named; None for ``auto``."""
    if asked == AUTO:
        return None
    if asked in router.aliases:
        return router.aliases[asked]
    if asked not in variants:
        names = ", ".join(sorted({*variants, *router.aliases}))
        raise Refused(UnknownVariant(f"this variant is not deployed; use auto, {names}", "variant"))
    return asked


def _named_reason(asked: str, variant: str) -> str:
    if asked == variant:
        return "asked for"
    return f"asked for {asked}, for which {variant} answers here"


def _default(
    ask: Ask,
    variants: Mapping[str, Situation],
    known: Mapping[str, Profile],
    router: RouterSettings,
) -> Choice:
    usual = router.default
    if usual not in known:
        return Choice(usual, "auto: the default variant")
    # Without a measured quality nobody is known to be as good.
    least = _quality(ask, known[usual], math.inf)
    times = {
        name: expected(profile, variants[name], ask.prompts, ask.images).total_ms
        for name, profile in known.items()
        # Nobody is woken by those who did not ask for it.
        if name == usual
        or (
            not ask.filtered
            and _quality(ask, profile, -math.inf) >= least
            and not variants[name].asleep
        )
    }
    soonest = min(times, key=times.__getitem__)
    if soonest != usual and times[soonest] <= _WORTH_IT * times[usual]:
        why = "has the image's embedding" if variants[soonest].resident else "has less to do"
        return Choice(
            soonest,
            f"auto: {soonest} is at least as good as {usual} and {why}",
            times[soonest],
        )
    return Choice(usual, "auto: the default variant", times[usual])


def _good_enough(ask: Ask, known: Mapping[str, Profile]) -> dict[str, Profile]:
    """Variants that reach ``min_quality``."""
    least = ask.min_quality
    if least is None:
        return dict(known)
    good = {n: p for n, p in known.items() if _quality(ask, p, -1.0) >= least}
    if good:
        return good
    found = {n: ask.quality(p) for n, p in known.items()}
    measured = {n: iou for n, iou in found.items() if iou is not None}
    kind = "mixed" if ask.mixed else ask.kind
    most = max(measured, key=measured.__getitem__, default=None)
    said = (
        f"no quality was measured for {kind} prompts here"
        if most is None
        # Rounded down: whoever asks for what is told gets it.
        else f"{most} reaches {math.floor(measured[most] * 1e3) / 1e3:.3f}"
    )
    raise Refused(
        HintsUnmet(
            f"no variant that may answer has a mean IoU of {least:g} for {kind} prompts; {said}",
            "min_quality",
        )
    )


def _in_time(
    ask: Ask,
    good: Mapping[str, Profile],
    variants: Mapping[str, Situation],
    times: Mapping[str, Expected],
) -> list[str]:
    """Variants that are expected to answer within ``max_latency_ms``."""
    most = ask.max_latency_ms
    if most is None:
        return list(good)
    found = [name for name in good if times[name].total_ms + ask.spent_ms <= most]
    if found:
        return found
    alone = {name: idle_ms(good[name], variants[name], ask.prompts, ask.images) for name in good}
    quickest = min(alone, key=alone.__getitem__)
    if alone[quickest] > most:
        raise Refused(
            HintsUnmet(
                f"no variant that may answer takes at most {most:g} ms for this request; "
                f"{quickest} takes about {math.ceil(alone[quickest])} ms",
                "max_latency_ms",
            )
        )
    soonest = min(times, key=lambda name: times[name].total_ms)
    asleep = [name for name in good if alone[name] <= most and variants[name].asleep]
    raise Refused(
        Overloaded(
            f"no variant that may answer does so within {most:g} ms at present; {soonest} would "
            f"in about {math.ceil(times[soonest].total_ms)} ms; try again later"
        ),
        wake=min(asleep, key=alone.__getitem__, default=None),
    )


def _best(
    ask: Ask, names: list[str], good: Mapping[str, Profile], times: Mapping[str, Expected]
) -> str:
    """With ``min_quality`` the soonest; else the best, and the soonest of equals."""
    if ask.min_quality is None:
        most = max(_quality(ask, good[name], 0.0) for name in names)
        names = [n for n in names if _quality(ask, good[n], 0.0) >= most - _SAME_QUALITY]
    return min(names, key=lambda name: times[name].total_ms)


def _kept_away(
    ask: Ask,
    chosen: str,
    good: Mapping[str, Profile],
    variants: Mapping[str, Situation],
    in_time: list[str],
) -> str | None:
    """A better variant that the load alone keeps from answering in time."""
    if ask.max_latency_ms is None or ask.min_quality is not None:
        return None
    mine = _quality(ask, good[chosen], 0.0)
    better = {
        name: _quality(ask, profile, 0.0)
        for name, profile in good.items()
        if name not in in_time
        and _quality(ask, profile, 0.0) > mine + _SAME_QUALITY
        and idle_ms(profile, variants[name], ask.prompts, ask.images) <= ask.max_latency_ms
    }
    return max(better, key=better.__getitem__, default=None)


def _hint_reason(ask: Ask, chosen: str, profile: Profile, time: Expected) -> str:
    parts = []
    if ask.min_quality is not None:
        parts.append(
            f"mean IoU {_quality(ask, profile, 0.0):.3f} reaches min_quality {ask.min_quality:g}"
        )
    if ask.max_latency_ms is not None:
        parts.append(f"expected in {time.total_ms:.0f} ms of the {ask.max_latency_ms:g} ms allowed")
    return f"{chosen}: " + ", ".join(parts)


def _quality(ask: Ask, profile: Profile, unknown: float) -> float:
    quality = ask.quality(profile)
    return unknown if quality is None else quality
