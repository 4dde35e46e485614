"""The scaling policy: replicas of all encoders and decoders within one budget.

A pure function, called by Ray's controller about ten times a second through
`serve_app.deployments.autoscaling` and by the simulator.  It never raises and never blocks, its
time is linear in the number of pools, and its memory is the ``state`` that it returns.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from serve_app.core.settings import ScalingSettings
from serve_app.scaling.demand import MAX_TIME_S, Demand, demand, measured
from serve_app.scaling.sharing import ReplicaRequest, share
from serve_app.scaling.types import Load, Pool, ScalingDecision

IDLE_S = 30.0
"""A replica that was idle for this time and a cold start may be stopped if the budget is short."""

_NOTHING = Load()


def decide(
    pools: Mapping[str, Pool],
    loads: Mapping[str, Load],
    state: Mapping[str, Any],
    settings: ScalingSettings,
    now: float,
) -> ScalingDecision:
    """Replicas for each of ``pools``.

    A pool scales up at once to what it needs for its arrivals, their growth over a cold start, and
    its queue; it scales down only after fewer replicas sufficed for ``hold_s``.  If the budget is
    too small, idle replicas are stopped first, then those of the pools that serve fewest items per
    unit.

    Args:
        pools: by name; the decision uses the same names.
        loads: by the same names.  A pool without usable figures keeps its replicas.
        state: ``ScalingDecision.state`` of the last call; anything else counts as none.
        settings: the operator's settings.
        now: seconds of any monotonic clock.
    """
    try:
        return _decide(pools, loads, state, settings, now)
    except Exception:
        # A policy that raises stalls every application of the controller.
        given = _mapping(loads)
        targets = {name: getattr(given.get(name), "target", None) for name in pools}
        return ScalingDecision({n: _unchanged(pool, targets[n]) for n, pool in pools.items()})


def _decide(
    pools: Mapping[str, Pool],
    loads: Mapping[str, Load],
    state: Mapping[str, Any],
    settings: ScalingSettings,
    now: float,
) -> ScalingDecision:
    before, given = _mapping(_mapping(state).get("pools")), _mapping(loads)
    found = {name: _mapping(before.get(name)) for name in pools}
    usable = {n: load if isinstance(load := given.get(n), Load) else _NOTHING for n in pools}
    time = measured(now, MAX_TIME_S)
    targets = {
        name: _unchanged(pool, usable[name].target, found[name].get("replicas"))
        for name, pool in pools.items()
    }
    needs = _needs(pools, usable, found, settings, time)

    requests: dict[str, ReplicaRequest] = {}
    states: dict[str, dict[str, Any]] = {}
    for name, pool in pools.items():
        need, target = needs[name], targets[name]
        if need is None or time is None:
            requests[name] = ReplicaRequest(target, target, target, target, 0.0)
            states[name] = dict(_json(found[name]))
            continue
        least, usual, most = (_bounded(n, pool) for n in need.now)
        low, spare, high = (_bounded(n, pool) for n in need.surge)
        own, kept = found[name], {}
        kept["idle"] = _peak(own.get("idle"), most, target, max(IDLE_S, pool.cold_start_s), time)
        kept["usual"] = _peak(own.get("usual"), usual, target, settings.hold_s, time)
        kept["spare"] = _peak(own.get("spare"), high, target, settings.hold_s, time)
        minimum = usual if least > target else min(target, _whole(kept["idle"]))
        current = max(minimum, min(target, _whole(kept["usual"])))
        desired = max(current, spare if low > target else min(target, _whole(kept["spare"])))
        requests[name] = ReplicaRequest(
            required=least,
            min=_bounded(minimum, pool),
            current=_bounded(current, pool),
            desired=_bounded(desired, pool),
            per_unit=need.per_unit,
        )
        states[name] = {**need.state, **kept}
    replicas = share(pools, targets, requests, settings.budget, settings.reserve)
    for name in pools:
        states[name]["replicas"] = replicas[name]
    return ScalingDecision(replicas, {"pools": states}, _reasons(targets, replicas, needs))


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
            # Requests that wait for the encoder are counted at the decoder as well.
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
        # Requests to a decoder will reach its encoder, unless all embeddings are cached.
        needs[name] = _at_least_one(need) if misses.get(name, 0.0) > 0 else need
    return needs


def _at_least_one(need: Demand | None) -> Demand:
    """At least one replica."""
    if need is None:
        return Demand((1, 1, 1), (1, 1, 1), 0.0, 0.0, 0.0, {})
    return replace(need, now=_least_one(need.now), surge=_least_one(need.surge))


def _least_one(needed: tuple[int, int, int]) -> tuple[int, int, int]:
    least, have, most = needed
    return max(1, least), max(1, have), max(1, most)


def _mapping(value: Any) -> Mapping[Any, Any]:
    """The value if it is a mapping; arguments may be malformed."""
    return value if isinstance(value, Mapping) else {}


def _unchanged(pool: Pool, target: Any, remembered: Any = None) -> int:
    """The number last requested from Serve, else the remembered one, else the minimum."""
    for value in (measured(target), measured(remembered)):
        if value is not None:
            return _bounded(math.ceil(value), pool)
    return _bounded(0, pool)


def _bounded(replicas: int, pool: Pool) -> int:
    return max(pool.min_replicas, min(pool.max_replicas, replicas))


def _peak(peak: Any, value: int, target: int, span_s: float, now: float) -> list[float]:
    """Sliding maximum of ``value`` in two windows of ``span_s``.

    Returns:
        Start of the present window, the maximum of the previous one (before the first one:
        ``target``), and that of the present one.  The larger of both is the maximum over one to
        two times ``span_s``.
    """
    if isinstance(peak, list | tuple) and len(peak) == 3:
        start, before, most = measured(peak[0], MAX_TIME_S), measured(peak[1]), measured(peak[2])
        if start is not None and before is not None and most is not None and start <= now:
            if now - start >= span_s:
                return [now, most, float(value)]
            return [start, before, max(most, float(value))]
    return [now, float(target), float(value)]


def _whole(peak: list[float]) -> int:
    return math.ceil(max(peak[1:]))


def _json(state: Mapping[str, Any]) -> Mapping[str, Any]:
    """The part of the state that is kept while nothing is measured."""
    kept = {k: measured(state.get(k), MAX_TIME_S) for k in ("t", "level", "queue")}
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
            reasons[name] = f"{targets[name]} -> {n}: no measurements; bounds or budget changed"
        else:
            reasons[name] = (
                f"{targets[name]} -> {n}: {need.level:.3g} items/s, {need.waiting:.3g} requests "
                f"queued; requires {need.now[0]}"
            )
    return reasons
