"""Load over time.  A load of 1 keeps the whole budget busy in full batches."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from serve_tools.simulation.scenario import ACCURATE, FAST, Scale

NEW = 0.5
"""Share of requests with a new image."""
PROMPTS = (1, 1, 2, 4)
"""Prompts of a request, equally likely."""
MIX = 0.1
"""Usual share of requests that require quality."""
HOT = -1
"""The image of the hot-image trace."""

Curve = Callable[[float], float]


@dataclass(frozen=True, slots=True)
class Trace:
    """Load over time.

    Attributes:
        load: share of the budget by second.
        mix: share of requests that require quality, by second.
        hot: share of the requests that are for one image, known after the first of them.
        deaths: seconds and the pool of which a replica dies.
        new: share of requests with a new image.
        prompts: of a request, equally likely.
        rate: requests a second, instead of ``load``.
    """

    name: str
    seconds: float
    load: Curve
    mix: Curve
    hot: Curve
    deaths: tuple[tuple[float, str], ...] = ()
    new: float = NEW
    prompts: tuple[int, ...] = PROMPTS
    rate: float | None = None


@dataclass(frozen=True, slots=True)
class Arrivals:
    """Requests in order of time, each row standing for ``weight`` of them.

    Attributes:
        t: ``(N,) float64`` seconds.
        quality: ``(N,) bool``: requires quality.
        bounded: ``(N,) bool``: of those, takes the best within a time instead of requiring it.
        prompts: ``(N,) int64``.
        image: ``(N,) int64`` ids; equal ids are the same image.
    """

    t: NDArray[np.float64]
    quality: NDArray[np.bool_]
    bounded: NDArray[np.bool_]
    prompts: NDArray[np.int64]
    image: NDArray[np.int64]
    weight: int


def _flat(value: float) -> Curve:
    return lambda t: value


def _steps(*points: tuple[float, float]) -> Curve:
    """The value of the last point that has passed."""

    def at(t: float) -> float:
        return [v for start, v in points if start <= t][-1]

    return at


def _line(*points: tuple[float, float]) -> Curve:
    times, values = zip(*points, strict=True)
    return lambda t: float(np.interp(t, times, values))


def _bursts(low: float, high: float, every: float, lasting: float) -> Curve:
    return lambda t: high if t >= every / 2 and (t - every / 2) % every < lasting else low


def traces() -> dict[str, Trace]:
    """The built-in traces by name.  Means are 35 to 60 % of the budget."""
    minute = 60.0
    day = _line(
        *[
            (hour / 24 * 60 * minute, load)
            for hour, load in (
                (0, 0.15), (5, 0.12), (8, 0.5), (10, 0.85), (12, 0.75), (14, 0.9), (17, 0.7),
                (20, 0.45), (24, 0.15),
            )
        ]
    )  # fmt: skip
    made = (
        Trace(
            "step", 30 * minute,
            _steps((0, 0.3), (5 * minute, 0.8), (20 * minute, 0.3)), _flat(MIX), _flat(0),
        ),
        Trace("burst", 30 * minute, _bursts(0.35, 1.1, 5 * minute, 60.0), _flat(MIX), _flat(0)),
        Trace("day", 60 * minute, day, _flat(MIX), _flat(0)),
        Trace(
            "shift", 40 * minute, _flat(0.6),
            _line((0, 0.02), (8 * minute, 0.02), (9 * minute, 0.4), (24 * minute, 0.4),
                  (25 * minute, 0.02)),
            _flat(0),
        ),
        Trace(
            "hot", 30 * minute, _flat(0.45), _flat(MIX),
            _steps((0, 0), (5 * minute, 0.8), (20 * minute, 0)),
        ),
        Trace(
            "dead", 30 * minute, _flat(0.6), _flat(MIX), _flat(0),
            tuple(
                (4 * minute + i * 6 * minute, f"{variant}-{role}")
                for i, (variant, role) in enumerate(
                    (v, r) for v in (FAST, ACCURATE) for r in ("encoder", "decoder")
                )
            ),
        ),
    )  # fmt: skip
    return {trace.name: trace for trace in made}


def requests_per_s(scale: Scale, trace: Trace, t: float) -> float:
    """Requests a second that make the load.  Hot requests come on top: they cost no encoder."""
    if trace.rate is not None:
        return trace.rate
    prompts, mix = sum(trace.prompts) / len(trace.prompts), trace.mix(t)
    each = (1 - mix) * scale.units_per_request(FAST, trace.new, prompts)
    each += mix * scale.units_per_request(ACCURATE, trace.new, prompts)
    return trace.load(t) * scale.budget / each / (1 - trace.hot(t))


def arrivals(
    trace: Trace, scale: Scale, rng: np.random.Generator, *, warm_s: float, weight: int
) -> Arrivals:
    """Poisson arrivals of a trace, after ``warm_s`` seconds at its first load.

    Rows stand for ``weight`` requests each: each kind's Poisson counts by second are divided by the
    weight, and the remainder is carried over to the next second.
    """
    kinds = [(q, bounded, new) for q in (0, 1) for bounded in (0, 1) for new in (0, 1)]
    parts: list[tuple[NDArray[np.float64], int, int, int]] = []
    carried = np.zeros(len(kinds) + 1)
    for second in range(int(warm_s + trace.seconds)):
        at = max(0.0, second - warm_s)
        mix, hot = trace.mix(at), trace.hot(at)
        rate = requests_per_s(scale, trace, at)
        rates = [
            rate * (1 - hot) * (mix if q else 1 - mix) / 2 * (trace.new if new else 1 - trace.new)
            for q, _, new in kinds
        ]
        carried += rng.poisson([*rates, rate * hot])
        counts = (carried // weight).astype(int)
        carried -= counts * weight
        for (q, bounded, new), count in zip([*kinds, (0, 0, 2)], counts.tolist(), strict=True):
            if count:
                parts.append((second + rng.random(count), q, bounded, new))
    t = np.concatenate([part[0] for part in parts])
    order = np.argsort(t, kind="stable")

    def column(index: int) -> NDArray[np.int64]:
        return np.concatenate([np.full(len(p[0]), p[index], np.int64) for p in parts])[order]

    n, source = len(t), column(3)
    known = max(1, scale.images // weight)
    image = np.where(source == 1, known + np.arange(n), rng.integers(0, known, n))
    return Arrivals(
        t=t[order],
        quality=column(1) == 1,
        bounded=column(2) == 1,
        prompts=rng.choice(np.array(trace.prompts), n),
        image=np.where(source == 2, HOT, image),
        weight=weight,
    )
