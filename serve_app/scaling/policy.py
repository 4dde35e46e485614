"""One policy for all encoders and decoders: what each needs, out of one budget.

A pure function, called by Ray's controller about ten times a second through
`serve_app.deployments.autoscaling` and by the simulator.  It never raises and never blocks, its
time is linear in the number of pools, and what it remembers is in the ``state`` it returns.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from serve_app.core.settings import ScalingSettings
from serve_app.scaling.demand import LATEST, Demand, demand, measured
from serve_app.scaling.sharing import Claim, share
from serve_app.scaling.types import Load, Plan, Pool

IDLE_S = 30.0
"""A replica that was idle for so long, and a cold start, gives way where the budget is short."""

_NOTHING = Load()


def decide(
    pools: Mapping[str, Pool],
    loads: Mapping[str, Load],
    state: Mapping[str, Any],
    settings: ScalingSettings,
    now: float,
) -> Plan:
    """Replicas for each of ``pools``.

    A pool gets at once what it needs, from the arrivals, their growth over a cold start, and the
    queue; fewer replicas only after they sufficed for ``hold_s``.  Where the budget does not hold
    all of it, idle replicas go first, and then the pools that answer fewest items per unit.

    Args:
        pools: by any name; the same names are in the plan.
        loads: by the same names.  A pool without usable figures keeps what it had.
        state: ``Plan.state`` of the last call; anything else counts as none.
        settings: the operator's knobs.
        now: seconds of any clock that does not go backwards.
    """
    try:
        return _decide(pools, loads, state, settings, now)
    except Exception:
        # A policy that raises stalls every application of the controller.
        return Plan({name: _as_is(pool, name, loads) for name, pool in pools.items()})


def _decide(
    pools: Mapping[str, Pool],
    loads: Mapping[str, Load],
    state: Mapping[str, Any],
    settings: ScalingSettings,
    now: float,
) -> Plan:
    before = state.get("pools") if isinstance(state, Mapping) else None
    before = before if isinstance(before, Mapping) else {}
    found: dict[str, Mapping[str, Any]] = {}
    usable: dict[str, Load] = {}
    for name in pools:
        own = before.get(name)
        found[name] = own if isinstance(own, Mapping) else {}
        load = loads.get(name) if isinstance(loads, Mapping) else None
        usable[name] = load if isinstance(load, Load) else _NOTHING
    time = measured(now, LATEST)
    targets = {
        name: _held(pool, usable[name].target, found[name].get("want"))
        for name, pool in pools.items()
    }
    needs = _needs(pools, usable, found, settings, time)

    claims: dict[str, Claim] = {}
    states: dict[str, dict[str, Any]] = {}
    for name, pool in pools.items():
        need, target = needs[name], targets[name]
        if need is None or time is None:
            claims[name] = Claim(target, target, target, target, 0.0)
            states[name] = dict(_json(found[name]))
            continue
        least, usual, most = (_bounded(n, pool) for n in need.now)
        low, spare, high = (_bounded(n, pool) for n in need.surge)
        own, kept = found[name], {}
        kept["idle"] = _peak(own.get("idle"), most, target, max(IDLE_S, pool.cold_start_s), time)
        kept["held"] = _peak(own.get("held"), usual, target, settings.hold_s, time)
        kept["spare"] = _peak(own.get("spare"), high, target, settings.hold_s, time)
        firm = usual if least > target else min(target, _whole(kept["idle"]))
        held = max(firm, min(target, _whole(kept["held"])))
        want = max(held, spare if low > target else min(target, _whole(kept["spare"])))
        claims[name] = Claim(
            least, _bounded(firm, pool), _bounded(held, pool), _bounded(want, pool), need.per_unit
        )
        states[name] = {**need.state, **kept}
    replicas = share(pools, targets, claims, settings.budget, settings.reserve)
    for name in pools:
        states[name]["want"] = replicas[name]
    return Plan(replicas, {"pools": states}, _reasons(targets, replicas, needs))


def _needs(
    pools: Mapping[str, Pool],
    loads: Mapping[str, Load],
    states: Mapping[str, Mapping[str, Any]],
    settings: ScalingSettings,
    now: float | None,
) -> dict[str, Demand | None]:
    encoders = {pool.variant: name for name, pool in pools.items() if pool.role == "encoder"}
    needs: dict[str, Demand | None] = dict.fromkeys(pools)
    if now is None:
        return needs
    coming: dict[str, float] = {}
    misses: dict[str, float] = {}
    for name, pool in pools.items():
        ongoing = measured(loads[name].ongoing)
        encoder = encoders.get(pool.variant)
        if pool.role == "encoder":
            continue
        if ongoing is not None and encoder is not None:
            # Whoever waits for the encoder is counted at the decoder, too.
            ongoing = max(0.0, ongoing - (measured(loads[encoder].ongoing) or 0.0))
        needs[name] = need = demand(pool, loads[name], ongoing, 0.0, states[name], settings, now)
        if encoder is not None and need is not None and need.now[0] > 0:
            hits = measured(loads[name].hit_rate)
            misses[encoder] = 1.0 - min(1.0, hits or 0.0)
            coming[encoder] = need.waiting * misses[encoder]
    for name in encoders.values():
        ongoing = measured(loads[name].ongoing)
        need = demand(
            pools[name], loads[name], ongoing, coming.get(name, 0.0), states[name], settings, now
        )
        # What comes to a decoder will come to its encoder, unless all images are known.
        awake = misses.get(name, 0.0) > 0
        needs[name] = _awake(need) if awake else need
    return needs


def _awake(need: Demand | None) -> Demand:
    """At least one replica."""
    if need is None:
        return Demand((1, 1, 1), (1, 1, 1), 0.0, 0.0, 0.0, {})
    if need.now[0]:
        return need
    return replace(need, now=_least_one(need.now), surge=_least_one(need.surge))


def _least_one(needed: tuple[int, int, int]) -> tuple[int, int, int]:
    least, have, most = needed
    return max(1, least), max(1, have), max(1, most)


def _as_is(pool: Pool, name: str, loads: Any) -> int:
    """What Ray was told last, from arguments that may be anything."""
    try:
        return _held(pool, loads[name].target, None)
    except Exception:
        return pool.min_replicas


def _held(pool: Pool, target: Any, want: Any) -> int:
    """The last good answer: what Ray was told, else what this policy remembers, else the least."""
    for value in (measured(target), measured(want)):
        if value is not None:
            return _bounded(math.ceil(value), pool)
    return _bounded(0, pool)


def _bounded(replicas: int, pool: Pool) -> int:
    return max(pool.min_replicas, min(pool.max_replicas, replicas))


def _peak(peak: Any, value: int, target: int, span_s: float, now: float) -> list[float]:
    """When a span began, the most of the one before, and the most of this one.

    Their larger is the most of ``span_s`` to twice that.  Of what was before the first, nothing
    is known but that ``target`` was asked for.
    """
    if isinstance(peak, list | tuple) and len(peak) == 3:
        start, before, most = measured(peak[0], LATEST), measured(peak[1]), measured(peak[2])
        if start is not None and before is not None and most is not None and start <= now:
            if now - start >= span_s:
                return [now, most, float(value)]
            return [start, before, max(most, float(value))]
    return [now, float(target), float(value)]


def _whole(peak: list[float]) -> int:
    return math.ceil(max(peak[1:]))


def _json(state: Mapping[str, Any]) -> Mapping[str, Any]:
    """What of a remembered state can be kept while nothing is measured."""
    kept = {k: measured(state.get(k), LATEST) for k in ("t", "level", "queue")}
    return {k: v for k, v in kept.items() if v is not None}


def _reasons(
    targets: Mapping[str, int],
    replicas: Mapping[str, int],
    needs: Mapping[str, Demand | None],
) -> dict[str, str]:
    reasons = {}
    for name, n in replicas.items():
        need = needs[name]
        if n == targets[name]:
            continue
        if need is None:
            reasons[name] = f"{targets[name]} -> {n}: no figures; bounds or budget changed"
        else:
            reasons[name] = (
                f"{targets[name]} -> {n}: {need.level:.3g} items/s, {need.waiting:.3g} requests "
                f"wait; needs {need.now[0]}"
            )
    return reasons
