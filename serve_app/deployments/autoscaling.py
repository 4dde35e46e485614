"""`serve_app.scaling.policy` as the autoscaling policy of a Ray Serve application.

In a Serve config, with the graph's ``args`` repeated for the policy::

    args: &graph {...}
    autoscaling_policy:
      policy_function: serve_app.deployments.autoscaling:BudgetPolicy
      policy_kwargs: {graph: *graph}

Ray's controller makes one object of it, calls it about ten times a second, and applies to the
answer what each deployment's ``autoscaling_config`` says of bounds and delays.  An exception here
would stop the scaling of every application, so none leaves; all arithmetic is in `decide`.
"""

from __future__ import annotations

import inspect
import logging
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from ray.serve.autoscaling_policy import replica_queue_length_autoscaling_policy

from serve_app.core.measurements import Profile, pass_ms
from serve_app.core.settings import GraphSettings, ScalingSettings
from serve_app.deployments.replica import join_serve_log
from serve_app.models.factory import ModelSource
from serve_app.models.quantized import drop_unavailable_variants
from serve_app.profiles.load import load_ledger
from serve_app.scaling.policy import decide
from serve_app.scaling.types import Load, Pool, Role

log = logging.getLogger(__name__)

Contexts = Mapping[Any, Any]  # Ray's DeploymentID -> AutoscalingContext
Decision = tuple[dict[Any, float], dict[Any, dict[str, Any]]]

STATE_KEY = "budget_policy"
COLD_START_S = 10.0
"""Of a variant that was not measured."""
GUESSED_MS: Mapping[Role, float] = {"encoder": 250.0, "decoder": 25.0}
"""A pass of one item, until a replica of an unmeasured variant has told."""
SILENCE_S = 5.0
"""New replicas tell their figures within a second; who is silent for longer never will."""
_HUGE = 1e15
_COMPLAIN_EVERY_S = 60.0


@dataclass(frozen=True, slots=True)
class _Half:
    """A variant's encoder or decoder, as configured and measured."""

    pool: Pool
    encoder: str | None  # of a decoder: the deployment without which it is fused
    fused_ms: Mapping[int, float]
    measured: bool


class BudgetPolicy:
    """Shares a budget among encoders and decoders; everything else scales as Ray's default does.

    A deployment whose ``autoscaling_config`` names a policy of its own is scaled by that, and
    what it takes is left out of the budget.

    Args:
        graph: the application's ``args``, see `GraphSettings`.
    """

    def __init__(self, graph: Mapping[str, Any] | None = None) -> None:
        self._scaling = ScalingSettings()
        self._halves: dict[str, _Half] = {}
        self._seen_ms: dict[str, dict[int, float]] = {}
        self._own: dict[str, tuple[Any, Callable[..., Any]]] = {}
        self._silent_since: dict[str, float] = {}
        self._told: dict[str, int] = {}
        self._quiet_until = -math.inf
        try:
            join_serve_log()
            settings = drop_unavailable_variants(GraphSettings.model_validate(graph or {}))[0]
            self._scaling = settings.scaling
            self._halves = _halves(settings, _profiles(settings))
        except Exception:
            self._complain("the scaling policy cannot read its graph: Ray's default scales all")

    def __call__(self, contexts: Contexts) -> Decision:
        """Replicas by deployment, and the state that Ray hands back at the next call."""
        try:
            return self._decide(contexts)
        except Exception:
            self._complain("the scaling policy failed: all replicas stay as they are")
            return _held(contexts)

    def _decide(self, contexts: Contexts) -> Decision:
        replicas, states = _held(contexts)
        by_name = {_name(key): key for key in contexts}
        pools: dict[str, Pool] = {}
        loads: dict[str, Load] = {}
        before: Any = None
        for name in sorted(by_name.keys() & self._halves.keys()):
            context = contexts[by_name[name]]
            reported = _reported(context)
            pools[name] = self._pool(name, context, reported, by_name)
            loads[name] = self._heard(name, _load(context, reported))
            before = before or states.get(by_name[name], {}).get(STATE_KEY)
        plan = decide(pools, loads, before or {}, self._scaling, time.monotonic())
        for name, key in by_name.items():
            own = self._own_policy(name, contexts[key])
            if own is None and name in pools:
                replicas[key], states[key] = plan.replicas[name], {}
                continue
            try:
                wanted, state = (own or replica_queue_length_autoscaling_policy)(contexts[key])
                if math.isfinite(wanted) and wanted >= 0:
                    replicas[key], states[key] = wanted, dict(state or {})
            except Exception:
                self._complain(f"the policy of {name} failed: its replicas stay as they are")
        if pools:
            # Ray keeps a state for each deployment; ours is one for all.
            first = by_name[min(pools)]
            states[first] = {**states.get(first, {}), STATE_KEY: dict(plan.state)}
        self._tell(plan.replicas, plan.reasons)
        return replicas, states

    def _pool(
        self,
        name: str,
        context: Any,
        reported: Mapping[str, list[float]],
        deployed: Mapping[str, Any],
    ) -> Pool:
        half = self._halves[name]
        pool = half.pool
        if half.encoder is not None and half.encoder not in deployed:
            pool = replace(pool, pass_ms=half.fused_ms)
        if not half.measured:
            pool = replace(pool, pass_ms=self._observed(pool, reported))
        least = _count(getattr(context, "capacity_adjusted_min_replicas", None))
        most = _count(getattr(context, "capacity_adjusted_max_replicas", None))
        if self._own_policy(name, context) is not None:
            least = most = _count(getattr(context, "target_num_replicas", None))
        least = pool.min_replicas if least is None else least
        most = pool.max_replicas if most is None else most
        return replace(pool, min_replicas=least, max_replicas=max(least, most))

    def _heard(self, name: str, load: Load) -> Load:
        """Until the first replicas tell of items, requests alone do not make any.

        The questions whether they are ready, which wait while weights load, are requests, too.
        """
        now = time.monotonic()
        if load.arrivals_per_s is not None or not load.running:
            self._silent_since.pop(name, None)
        elif now - self._silent_since.setdefault(name, now) < SILENCE_S:
            return replace(load, arrivals_per_s=0.0)
        return load

    def _observed(self, pool: Pool, reported: Mapping[str, list[float]]) -> Mapping[int, float]:
        """What replicas tell of their passes, remembered while there is no replica."""
        table = self._seen_ms.setdefault(pool.name, {})
        items, took = _mean(reported.get("pass_items")), _mean(reported.get("pass_ms"))
        if items is not None and took is not None and 0 < took < 1e7 and items > 0:
            table[max(1, min(round(items), pool.max_batch))] = took
        return table or pool.pass_ms

    def _own_policy(self, name: str, context: Any) -> Callable[..., Any] | None:
        """The policy that a deployment's own configuration names; None: Ray's default."""
        try:
            policy = context.config.policy
            if policy.is_default_policy_function():
                return None
            known = self._own.get(name)
            if known is None or known[0] != policy:
                found = policy.get_policy()
                if inspect.isclass(found):
                    found = found(**policy.policy_kwargs)
                known = self._own[name] = (policy, found)
            return known[1]
        except Exception:
            self._complain(f"the policy of {name} cannot be loaded")
            return None

    def _tell(self, replicas: Mapping[str, int], reasons: Mapping[str, str]) -> None:
        for name, reason in reasons.items():
            if self._told.get(name) != replicas[name]:
                log.info("%s: %s", name, reason)
        self._told.update(replicas)

    def _complain(self, text: str) -> None:
        """Into the log, but not ten times a second."""
        now = time.monotonic()
        if now >= self._quiet_until:
            self._quiet_until = now + _COMPLAIN_EVERY_S
            log.exception(text)


def _halves(settings: GraphSettings, profiles: Mapping[str, Profile]) -> dict[str, _Half]:
    halves: dict[str, _Half] = {}
    sides = [
        (name, variant, side)
        for name, variant in settings.variants.items()
        for side in (variant.encoder, variant.decoder)
    ]
    for name, variant, side in sides:
        role: Role = "encoder" if side is variant.encoder else "decoder"
        if role == "encoder" and variant.layout == "fused":
            continue
        profile = profiles.get(name)
        table: Mapping[int, float] = {1: GUESSED_MS[role]}
        fused = {1: GUESSED_MS["encoder"] + GUESSED_MS["decoder"]}
        if profile is not None:
            table = dict(profile.encode_ms if role == "encoder" else profile.decode_ms)
            image_ms = pass_ms(profile.encode_ms, 1)
            fused = {n: image_ms + took for n, took in profile.decode_ms.items()}
        pool = Pool(
            name=f"{name}-{role}",
            variant=name,
            role=role,
            cost=side.cost(settings.on_gpus),
            min_replicas=int(side.autoscaling_config.get("min_replicas", 1)),
            max_replicas=side.max_replicas,
            max_batch=side.batching.max_batch_size,
            pass_ms=table,
            cold_start_s=COLD_START_S if profile is None else profile.cold_start_s,
        )
        encoder = f"{name}-encoder" if role == "decoder" else None
        halves[pool.name] = _Half(pool, encoder, fused, profile is not None)
    return halves


def _profiles(settings: GraphSettings) -> Mapping[str, Profile]:
    """The ledger's; without one replicas tell their times themselves."""
    try:
        return load_ledger(settings, ModelSource.of(settings).registry).profiles
    except Exception:
        log.exception("the ledger cannot be read: scaling goes by what replicas tell")
        return {}


def _held(contexts: Contexts) -> Decision:
    """Everything as it is.

    A deployment left out would stay as it is, too, but Ray would not wake it from zero.
    """
    replicas: dict[Any, float] = {}
    states: dict[Any, dict[str, Any]] = {}
    try:
        for key, context in contexts.items():
            target = _count(getattr(context, "target_num_replicas", None))
            if target is not None:
                replicas[key] = target
            state = getattr(context, "policy_state", None)
            states[key] = dict(state) if isinstance(state, Mapping) else {}
    except Exception:
        return {}, {}
    return replicas, states


def _name(key: Any) -> str:
    return str(getattr(key, "name", key))


def _reported(context: Any) -> dict[str, list[float]]:
    """The newest word of each replica on each figure; Ray passes on whatever replicas say."""
    found: dict[str, list[float]] = {}
    try:
        metrics = dict(context.raw_metrics or {})
    except Exception:
        return found
    for name, by_replica in metrics.items():
        try:
            newest = [series[-1].value for series in by_replica.values() if series]
        except Exception:  # noqa: S112 - a figure that is none is not there
            continue
        found[name] = [number for value in newest if (number := _finite(value)) is not None]
    return found


def _load(context: Any, reported: Mapping[str, list[float]]) -> Load:
    arrivals, oldest = reported.get("arrivals_per_s"), reported.get("oldest_s")
    return Load(
        running=_number(context, "current_num_replicas"),
        target=_number(context, "target_num_replicas"),
        ongoing=_number(context, "total_num_requests"),
        oldest_s=max(oldest) if oldest else None,
        arrivals_per_s=sum(arrivals) if arrivals else None,
        batch_fill=_mean(reported.get("batch_fill")),
        hit_rate=_mean(reported.get("hit_rate")),
    )


def _number(context: Any, attribute: str) -> float | None:
    try:
        return _finite(getattr(context, attribute))
    except Exception:  # it is computed when it is asked for
        return None


def _finite(value: Any) -> float | None:
    if not isinstance(value, int | float) or isinstance(value, bool):
        return None
    return float(value) if -_HUGE < value < _HUGE else None


def _count(value: Any) -> int | None:
    number = _finite(value)
    return int(number) if number is not None and 0 <= number < 1e6 else None


def _mean(values: list[float] | None) -> float | None:
    return sum(values) / len(values) if values else None
