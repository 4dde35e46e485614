"""Divides one budget among all pools.  Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from serve_app.scaling.types import Pool

_EPS = 1e-9
CHEAP = 0.05
"""Share of the budget up to which a pool's spare replicas precede what others require."""


@dataclass(frozen=True, slots=True)
class ReplicaRequest:
    """Replicas that a pool requests, within its own bounds.

    Attributes:
        required: fewer miss the latency goal.
        min: the same with a dead band: the present number, unless that is clearly too high.
        current: the present number, as far as it was required in the last ``hold_s``.
        desired: what a surge would require.
        per_unit: items per second that a unit of the budget serves.
    """

    required: int
    min: int
    current: int
    desired: int
    per_unit: float


def share(
    pools: Mapping[str, Pool],
    targets: Mapping[str, int],
    requests: Mapping[str, ReplicaRequest],
    budget: float | None,
    reserve: float,
) -> dict[str, int]:
    """Replicas for each pool, together within ``budget`` (but never below their minima).

    In this order: all minima; the first replicas of variants that have none and need them, both
    components or neither, running variants first; spare replicas that cost next to nothing; what
    is required, first where a unit of the budget serves most items; what was required recently,
    in the same order; and, up to the share ``reserve`` of the budget, what is only desired:
    existing replicas first, then more for all in proportion.
    """
    if budget is None:
        return {name: request.current for name, request in requests.items()}
    order = sorted(pools, key=lambda name: (-requests[name].per_unit, name))
    given = {name: pool.min_replicas for name, pool in pools.items()}
    left = budget - sum(pool.cost * given[name] for name, pool in pools.items())

    def give(name: str, replicas: int) -> None:
        nonlocal left
        more = replicas - given[name]
        if more > 0:
            more = min(more, max(0, math.floor(left / pools[name].cost + _EPS)))
            given[name] += more
            left -= more * pools[name].cost

    excluded: set[str] = set()
    variants = dict.fromkeys(pools[name].variant for name in order)
    stopped = {pools[n].variant for n in order if requests[n].required > 0 and not targets[n]}
    for variant in sorted(variants, key=stopped.__contains__):
        first = [n for n in order if pools[n].variant == variant and not given[n]]
        first = [n for n in first if requests[n].required > 0]
        if sum(pools[n].cost for n in first) > left + _EPS:
            excluded.update(first)  # one component alone could serve nothing
            continue
        for name in first:
            give(name, 1)
    order = [name for name in order if name not in excluded]
    for name in order:
        cheap = math.floor(CHEAP * budget / pools[name].cost + _EPS)
        give(name, min(requests[name].desired, cheap))
    for name in order:
        give(name, requests[name].min)
    for name in order:
        give(name, requests[name].current)
    left -= (1.0 - reserve) * budget
    for name in order:
        give(name, min(targets[name], requests[name].desired))
    spare = {name: requests[name].desired - given[name] for name in order}
    cost = sum(pools[name].cost * more for name, more in spare.items() if more > 0)
    part = min(1.0, max(0.0, left) / cost) if cost > 0 else 0.0
    for name in order:
        give(name, given[name] + math.floor(part * spare[name] + _EPS))
    return given
