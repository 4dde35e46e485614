"""`serve_app.scaling.policy` as the autoscaling policy of a Ray Serve application.

In a Serve config, with the graph's ``args`` repeated for the policy::

    args: &graph {...}
    autoscaling_policy:
      policy_function: serve_app.deployments.autoscaling:BudgetPolicy
      policy_kwargs: {graph: *graph}

Serve's controller creates one object of it, calls it about ten times a second, and applies the
bounds and delays of each deployment's ``autoscaling_config`` to the result.  The policy reads no
files, because the controller may run on another host than the graph's builder: settings come from
``policy_kwargs``, measured profiles from the reports of the ingress.  An exception here would stop
the scaling of every application, so none leaves; all arithmetic is in `decide`.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from ray.serve.autoscaling_policy import replica_queue_length_autoscaling_policy
from ray.serve.config import AutoscalingPolicy

from serve_app.core.measurements import Profile, pass_ms
from serve_app.core.settings import GraphSettings, ScalingSettings
from serve_app.deployments.compat.runtime import load_policy
from serve_app.deployments.telemetry import join_serve_log
from serve_app.scaling.demand import measured
from serve_app.scaling.policy import decide
from serve_app.scaling.reports import read_profiles
from serve_app.scaling.types import Load, Pool, Role

log = logging.getLogger(__name__)

Contexts = Mapping[Any, Any]  # Ray's DeploymentID -> AutoscalingContext
Decision = tuple[dict[Any, float], dict[Any, dict[str, Any]]]

STATE_KEY = "budget_policy"
_DEFAULT_POLICY = AutoscalingPolicy.model_fields["policy_function"].default
DEFAULT_COLD_START_S = 10.0
"""Of a variant that was not measured."""
DEFAULT_MS: Mapping[Role, float] = {"encoder": 250.0, "decoder": 25.0}
"""A pass of one item of a variant that was not measured, until a replica reports one."""
FIRST_REPORT_S = 5.0
"""New replicas report within a second; after this time a missing report counts as permanent."""
_LOG_INTERVAL_S = 60.0


class BudgetPolicy:
    """Shares a budget among encoders and decoders; everything else scales by Serve's default.

    A deployment with its own policy in ``autoscaling_config`` is scaled by that policy, and its
    replicas are subtracted from the budget.

    Args:
        graph: the application's ``args``, see `GraphSettings`.
    """

    def __init__(self, graph: Mapping[str, Any] | None = None) -> None:
        self._scaling = ScalingSettings()
        self._pools: dict[str, Pool] = {}
        self._profiles: dict[str, Profile] = {}
        self._observed_ms: dict[str, dict[int, float]] = {}
        self._own: dict[str, tuple[Any, Callable[..., Any]]] = {}
        self._silent_since: dict[str, float] = {}
        self._logged: dict[str, int] = {}
        self._quiet_until = -math.inf
        try:
            join_serve_log()
            settings = GraphSettings.model_validate(graph or {})
            self._scaling = settings.scaling
            self._pools = _pools(settings)
        except Exception:
            self._log_error("the scaling policy has an invalid graph: Serve's default scales all")

    def __call__(self, contexts: Contexts) -> Decision:
        """Replicas by deployment, and the state that Serve passes to the next call."""
        try:
            return self._decide(contexts)
        except Exception:
            self._log_error("the scaling policy failed: all replicas stay as they are")
            return _unchanged(contexts)

    def _decide(self, contexts: Contexts) -> Decision:
        replicas, states = _unchanged(contexts)
        by_name = {_name(key): key for key in contexts}
        pools: dict[str, Pool] = {}
        loads: dict[str, Load] = {}
        before: Any = None
        for name in by_name.keys() - self._pools.keys():
            self._read_profiles(_reported(contexts[by_name[name]]))
        for name in sorted(by_name.keys() & self._pools.keys()):
            context = contexts[by_name[name]]
            reported = _reported(context)
            pools[name] = self._pool(name, context, reported, by_name)
            loads[name] = self._without_early_requests(name, _load(context, reported))
            before = before or states.get(by_name[name], {}).get(STATE_KEY)
        decision = decide(pools, loads, before or {}, self._scaling, time.monotonic())
        for name, key in by_name.items():
            own = self._own_policy(name, contexts[key])
            if own is None and name in pools:
                replicas[key], states[key] = decision.replicas[name], {}
                continue
            try:
                desired, state = (own or replica_queue_length_autoscaling_policy)(contexts[key])
                if math.isfinite(desired) and desired >= 0:
                    replicas[key], states[key] = desired, dict(state or {})
            except Exception:
                self._log_error(f"the policy of {name} failed: its replicas stay as they are")
        if pools:
            # Serve keeps one state for each deployment; this one is shared by all.
            first = by_name[min(pools)]
            states[first] = {**states.get(first, {}), STATE_KEY: dict(decision.state)}
        for name, reason in decision.reasons.items():
            if self._logged.get(name) != decision.replicas[name]:
                log.info("%s: %s", name, reason)
        self._logged.update(decision.replicas)
        return replicas, states

    def _read_profiles(self, reported: Mapping[str, list[float]]) -> None:
        """Keep the profiles that the ingress reports; its replicas report the same ones."""
        found = read_profiles({name: values[0] for name, values in reported.items() if values})
        if found.keys() - self._profiles.keys():
            log.info("measured profiles: %s", ", ".join(sorted(found)))
        self._profiles |= found

    def _pool(
        self,
        name: str,
        context: Any,
        reported: Mapping[str, list[float]],
        deployed: Mapping[str, Any],
    ) -> Pool:
        pool = self._pools[name]
        fused = pool.role == "decoder" and f"{pool.variant}-encoder" not in deployed
        profile = self._profiles.get(pool.variant)
        if profile is None:
            pool = self._with_observed(pool, reported, fused=fused)
        else:
            table = _pass_times(profile, pool.role, fused=fused)
            pool = replace(pool, pass_ms=table, cold_start_s=profile.cold_start_s)
        bounds = "capacity_adjusted_min_replicas", "capacity_adjusted_max_replicas"
        if self._own_policy(name, context) is not None:
            bounds = "target_num_replicas", "target_num_replicas"
        least, most = (_number(context, bound) for bound in bounds)
        least = int(pool.min_replicas if least is None else least)
        most = int(pool.max_replicas if most is None else most)
        return replace(pool, min_replicas=least, max_replicas=max(least, most))

    def _with_observed(
        self, pool: Pool, reported: Mapping[str, list[float]], *, fused: bool
    ) -> Pool:
        """The pool with the pass times observed so far, which are kept while it has no replica."""
        observed = self._observed_ms.setdefault(pool.name, {})
        items, took = _mean(reported.get("pass_items")), _mean(reported.get("pass_ms"))
        if items is not None and took is not None and 0 < took < 1e7 and items > 0:
            observed[max(1, min(round(items), pool.max_batch))] = took
        if fused and not observed:
            return replace(pool, pass_ms={1: sum(DEFAULT_MS.values())})
        return replace(pool, pass_ms=dict(observed)) if observed else pool

    def _without_early_requests(self, name: str, load: Load) -> Load:
        """Count no arrivals until the first replicas report items.

        Readiness probes, which wait while weights are loaded, would count as requests.
        """
        now = time.monotonic()
        if load.arrivals_per_s is not None or not load.running:
            self._silent_since.pop(name, None)
        elif now - self._silent_since.setdefault(name, now) < FIRST_REPORT_S:
            return replace(load, arrivals_per_s=0.0)
        return load

    def _own_policy(self, name: str, context: Any) -> Callable[..., Any] | None:
        """The policy in a deployment's own configuration; None: Serve's default."""
        try:
            policy = context.config.policy
            if policy.policy_function == _DEFAULT_POLICY:
                return None
            known = self._own.get(name)
            if known is None or known[0] != policy:
                known = self._own[name] = (policy, load_policy(policy))
            return known[1]
        except Exception:
            self._log_error(f"the policy of {name} cannot be loaded")
            return None

    def _log_error(self, text: str) -> None:
        """Log the present exception, at most once a minute."""
        now = time.monotonic()
        if now >= self._quiet_until:
            self._quiet_until = now + _LOG_INTERVAL_S
            log.exception(text)


def _pools(settings: GraphSettings) -> dict[str, Pool]:
    """Encoders and decoders of all configured variants; some may not be deployed."""
    found: dict[str, Pool] = {}
    for variant, chosen in settings.variants.items():
        roles: list[Role] = ["decoder"] if chosen.layout == "fused" else ["encoder", "decoder"]
        for role in roles:
            component = chosen.encoder if role == "encoder" else chosen.decoder
            name = f"{variant}-{role}"
            found[name] = Pool(
                name=name,
                variant=variant,
                role=role,
                cost=component.cost(settings.on_gpus),
                min_replicas=int(component.autoscaling_config.get("min_replicas", 1)),
                max_replicas=component.max_replicas,
                max_batch=component.batching.max_batch_size,
                pass_ms={1: DEFAULT_MS[role]},
                cold_start_s=DEFAULT_COLD_START_S,
            )
    return found


def _pass_times(profile: Profile, role: Role, *, fused: bool) -> dict[int, float]:
    """Milliseconds of a pass by items in it; if fused, each includes encoding one image."""
    if role == "encoder":
        return dict(profile.encode_ms)
    image_ms = pass_ms(profile.encode_ms, 1) if fused else 0.0
    return {items: image_ms + ms for items, ms in profile.decode_ms.items()}


def _unchanged(contexts: Contexts) -> Decision:
    """The present replicas and states.

    A deployment without an entry would keep its replicas, but Serve would not scale it from zero.
    """
    replicas: dict[Any, float] = {}
    states: dict[Any, dict[str, Any]] = {}
    try:
        for key, context in contexts.items():
            target = _number(context, "target_num_replicas")
            if target is not None:
                replicas[key] = int(target)
            state = getattr(context, "policy_state", None)
            states[key] = dict(state) if isinstance(state, Mapping) else {}
    except Exception:
        return {}, {}
    return replicas, states


def _name(key: Any) -> str:
    return str(getattr(key, "name", key))


def _reported(context: Any) -> dict[str, list[float]]:
    """The newest value of each figure from each replica; Serve passes on any value unchecked."""
    found: dict[str, list[float]] = {}
    try:
        metrics = dict(context.raw_metrics or {})
    except Exception:
        return found
    for name, by_replica in metrics.items():
        try:
            newest = [series[-1].value for series in by_replica.values() if series]
        except Exception:  # noqa: S112 - a malformed series is ignored
            continue
        found[str(name)] = [number for value in newest if (number := measured(value)) is not None]
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
        return measured(getattr(context, attribute))
    except Exception:  # a property that computes its value
        return None


def _mean(values: list[float] | None) -> float | None:
    return sum(values) / len(values) if values else None
