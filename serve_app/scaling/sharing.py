"""One budget for all pools.  Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from serve_app.scaling.types import Pool

_EPS = 1e-9
CHEAP = 0.05
"""Share of the budget in which a pool's spare replicas go before what others need."""


@dataclass(frozen=True, slots=True)
class Claim:
    """What a pool asks for, within its own bounds.

    Attributes:
        need: replicas below which it misses its goal.
        firm: the same with a dead band: what it has, as long as that is not clearly too much.
        held: with what it needed a while ago.
        want: with what it would need in a surge.
        per_unit: items that a unit of the budget serves in a second.
    """

    need: int
    firm: int
    held: int
    want: int
    per_unit: float


def share(
    pools: Mapping[str, Pool],
    targets: Mapping[str, int],
    claims: Mapping[str, Claim],
    budget: float | None,
    reserve: float,
) -> dict[str, int]:
    """Replicas for each pool, together within ``budget`` (but never under their minima).

    In turn: everyone's minimum; the first replicas of variants that have none and are needed, both
    halves or neither, those that run already first; spare ones that
    cost next to nothing; what is needed, first where a unit of the budget keeps most items within
    their goal; what was needed, in the same order; and up to the share ``reserve`` of the budget
    what is only wanted: what is there already, then more for all alike.
    """
    if budget is None:
        return {name: claim.held for name, claim in claims.items()}
    order = sorted(pools, key=lambda name: (-claims[name].per_unit, name))
    given = {name: pool.min_replicas for name, pool in pools.items()}
    left = budget - sum(pool.cost * given[name] for name, pool in pools.items())

    def give(name: str, replicas: int) -> None:
        nonlocal left
        more = replicas - given[name]
        if more > 0:
            more = min(more, max(0, math.floor(left / pools[name].cost + _EPS)))
            given[name] += more
            left -= more * pools[name].cost

    asleep: set[str] = set()
    variants = dict.fromkeys(pools[name].variant for name in order)
    halted = {pools[n].variant for n in order if claims[n].need > 0 and not targets[n]}
    for variant in sorted(variants, key=halted.__contains__):
        first = [n for n in order if pools[n].variant == variant and not given[n]]
        first = [n for n in first if claims[n].need > 0]
        if sum(pools[n].cost for n in first) > left + _EPS:
            asleep.update(first)  # a half alone could answer nobody
            continue
        for name in first:
            give(name, 1)
    order = [name for name in order if name not in asleep]
    for name in order:
        cheap = math.floor(CHEAP * budget / pools[name].cost + _EPS)
        give(name, min(claims[name].want, cheap))
    for name in order:
        give(name, claims[name].firm)
    for name in order:
        give(name, claims[name].held)
    left -= (1.0 - reserve) * budget
    for name in order:
        give(name, min(targets[name], claims[name].want))
    spare = {name: claims[name].want - given[name] for name in order}
    cost = sum(pools[name].cost * more for name, more in spare.items() if more > 0)
    part = min(1.0, max(0.0, left) / cost) if cost > 0 else 0.0
    for name in order:
        give(name, given[name] + math.floor(part * spare[name] + _EPS))
    return given
