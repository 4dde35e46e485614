"""Computes the replicas that each pool needs, from measured pass times and load.  Pure.

An item is an image (encoder) or a prompt (decoder), as in `serve_app.scaling.types`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from serve_app.core.measurements import pass_ms
from serve_app.core.settings import ScalingSettings
from serve_app.scaling.types import Load, Pool

MAX_PLAUSIBLE = 1e7
"""Upper bound of plausible figures; a larger one is an error of its source."""
MAX_TIME_S = 1e12
"""Upper bound of plausible times, in seconds."""

LEVEL_S = 4.0
"""Shortest time constant of the smoothed arrivals: a few samples of one second."""
LEVEL_ITEMS = 20.0
"""Minimum number of items over which arrivals are smoothed: fewer are noise."""
MARK_S = 15.0
"""Arrivals count as growing if they grew in each of the last two spans of this length: a step
grows in one span only and must not be extrapolated."""
FULL = 0.8
"""Replicas at this share of their best throughput count as saturated."""
JUMP = 4.0
"""Standard deviations of noise beyond which a jump of the arrivals is taken as real at once."""
DRAIN = 0.25
"""Upper bound of the replicas for a backlog, relative to those for the arrivals."""
SLACK = 0.8
"""Share of the usual utilisation at which fewer replicas must suffice before any is stopped."""
STRAIN = 1.2
"""Factor above the usual utilisation at which more replicas are started."""


@dataclass(frozen=True, slots=True)
class Demand:
    """Required replicas of a pool.

    Numbers of replicas are triples: the lower bound, the number to choose when it changes, the
    upper bound.

    Attributes:
        now: for the present load and its growth over a cold start.
        surge: the same for a sudden multiple of the present load.
        per_unit: items per second that a unit of the budget serves.
        level: smoothed arrivals, in items per second.
        waiting: requests beyond those in passes or in the next one.
        state: input of the next call; JSON values.
    """

    now: tuple[int, int, int]
    surge: tuple[int, int, int]
    per_unit: float
    level: float
    waiting: float
    state: dict[str, Any]


def measured(value: Any, most: float = MAX_PLAUSIBLE) -> float | None:
    """A plausible measurement, or None."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if 0 <= value <= most else None


def service(pool: Pool, goal_ms: float, fill: float | None = None) -> tuple[float, int, float]:
    """Throughput of one replica.

    The batch size is the one with the best throughput among those at which an item that waits for
    one pass and is served by the next stays within the goal, if there is any; and no larger than
    batches become according to ``fill``.

    Returns:
        Items per second, batch size, and seconds of a pass.
    """
    most = pool.max_batch if fill is None else max(1, math.ceil(fill * pool.max_batch))
    rate, batch, duration = 0.0, 1, 1.0
    for items in sorted({1, most, *(n for n in pool.pass_ms if 1 < n < most)}):
        seconds = pass_ms(pool.pass_ms, items) / 1e3
        fits = items == 1 or 2e3 * seconds <= goal_ms
        if 0 < seconds < MAX_PLAUSIBLE and fits and items / seconds > rate:
            rate, batch, duration = items / seconds, items, seconds
    return rate, batch, duration


def demand(
    pool: Pool,
    load: Load,
    own_ongoing: float | None,
    coming: float,
    before: Mapping[str, Any],
    settings: ScalingSettings,
    now: float,
) -> Demand | None:
    """Compute the present demand of ``pool``; None if nothing usable was measured.

    Args:
        own_ongoing: requests that wait for this pool itself; a decoder's own figure also counts
            those that wait for the encoder.
        coming: requests that will arrive as soon as the decoder accepts them.
        before: ``Demand.state`` of the last call; other values count as no state.
    """
    arrivals, running = measured(load.arrivals_per_s), measured(load.running) or 0.0
    rate, batch, seconds = service(pool, settings.goal_ms)
    if rate <= 0 or (own_ongoing is None and arrivals is None):
        return None
    ongoing = own_ongoing or 0.0

    # The queue beyond the present and the next passes.
    excess = max(0.0, ongoing - 2.0 * batch * running)
    oldest, fill = measured(load.oldest_s), measured(load.batch_fill)
    if oldest is not None and 1e3 * oldest > settings.goal_ms:
        if fill is not None and fill <= 1 and excess > 0:
            # Batches stay small although items wait: expect no larger ones.
            rate = service(pool, settings.goal_ms, fill)[0] or rate
        excess = max(excess, rate * running * min(oldest - seconds, 60.0))
    if arrivals is None:
        # Little's law, with an item's usual time: half a pass of waiting and its own pass.
        arrivals = ongoing / (1.5 * seconds) if running else 0.0
    excess += coming
    state = _smoothed(before, arrivals, excess, now)
    level = state["level"]

    ahead = (level + _growth(state) * pool.cold_start_s) / (rate * settings.utilisation)
    target = measured(load.target) or 0.0
    full = running and arrivals >= FULL * rate * running
    if (
        full
        and pool.role == "decoder"
        and target <= running
        and 1e3 * excess > settings.goal_ms * rate * running
    ):
        # The number of queued prompts is unknown, only that of requests: double step by step.
        ahead = max(ahead, 2.0 * running)
    # A backlog adds little: most of it will be late before another replica has started.
    drain = excess / (rate * max(pool.cold_start_s, 2.0 * seconds, 1.0))
    drain = min(drain, max(1.0, DRAIN * ahead))
    busy = int(ongoing > 0 or coming > 0 or level * settings.hold_s > 1.0)
    usual = level / (rate * settings.utilisation)
    strain = min(STRAIN, 1.0 / settings.utilisation)

    def needed(times: float) -> tuple[int, int, int]:
        least = max(busy, _whole(max(ahead, times * usual) / strain + drain))
        have = max(least, _whole(max(ahead, times * usual) + drain))
        return least, have, max(have, _whole(times * usual / SLACK))

    surge = max(1.0, settings.surge)
    return Demand(needed(1.0), needed(surge), rate / pool.cost, level, excess, state)


def _whole(replicas: float) -> int:
    return math.ceil(min(replicas, MAX_PLAUSIBLE) - 0.05)


def _smoothed(
    before: Mapping[str, Any], arrivals: float, excess: float, now: float
) -> dict[str, Any]:
    """Exponential smoothing over time, independent of how often this is called.

    Requests queued at handles are not yet among a replica's arrivals: the queue's growth is added.
    """
    t = measured(before.get("t"), MAX_TIME_S)
    level, queue = measured(before.get("level")), measured(before.get("queue"))
    marks = _marks(before.get("marks"), now)
    if t is None or level is None or queue is None or not now - 600.0 < t <= now:
        level, queue, t = arrivals, excess, now
    keep = math.exp(-(now - t) / LEVEL_S)
    offered = arrivals + max(0.0, excess - queue) / LEVEL_S
    queue = excess + (queue - excess) * keep
    constant = min(max(LEVEL_S, LEVEL_ITEMS / max(level, offered, 1e-3)), 15 * LEVEL_S)
    level = offered + (level - offered) * math.exp(-(now - t) / constant)
    if arrivals > 1.5 * level and arrivals - level > JUMP * math.sqrt(max(level, 1.0)):
        level = arrivals
    if not marks or now - marks[-1][0] >= MARK_S:
        marks = [*marks[-2:], [now, level]]
    return {"t": now, "level": level, "queue": queue, "marks": marks}


def _marks(value: Any, now: float) -> list[list[float]]:
    """Levels at earlier times, the newest last; empty if the value is malformed."""
    if not isinstance(value, list | tuple):
        return []
    marks: list[list[float]] = []
    for pair in value[-3:]:
        if not isinstance(pair, list | tuple) or len(pair) != 2:
            return []
        t, level = measured(pair[0], MAX_TIME_S), measured(pair[1])
        if t is None or level is None or not (marks[-1][0] if marks else 0.0) < t <= now:
            return []
        marks.append([t, level])
    return marks


def _growth(state: Mapping[str, Any]) -> float:
    """Growth of the arrivals, in items per second per second; 0 if it is not sustained."""
    marks: list[list[float]] = state["marks"]
    if len(marks) < 3:
        return 0.0
    (t0, a), (t1, b), (t2, c) = marks[-3:]
    noise = math.sqrt(state["level"] / LEVEL_S)
    return max(0.0, min((b - a - noise) / (t1 - t0), (c - b - noise) / (t2 - t1)))
