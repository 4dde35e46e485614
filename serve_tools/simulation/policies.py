"""The two scaling policies, each with its metrics and the rules that Ray applies around it.

Ray's rules, as of Ray 2.60 (``ray.serve.autoscaling_policy``, ``_private.autoscaling_state`` and
``_private.router``): handles sample their ongoing requests every fifth of the look-back period
(or at the metrics interval, if that is shorter) and push the samples at the metrics interval; the
controller takes the time-weighted mean, the last sample holding until now, from when every
series, of each replica, has begun.  A handle without any replica pushes at once.  The controller
decides ten times a second.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Protocol

from serve_app.core.settings import ScalingSettings
from serve_app.scaling.policy import decide
from serve_app.scaling.types import Load, Pool
from serve_tools.simulation.cluster import ReplicaPool


@dataclass(frozen=True, slots=True)
class RayConfig:
    """The modelled part of Ray Serve's ``autoscaling_config``, with Ray's defaults."""

    target_ongoing_requests: float = 2.0
    look_back_period_s: float = 30.0
    metrics_interval_s: float = 10.0
    upscale_delay_s: float = 30.0
    downscale_delay_s: float = 600.0

    @property
    def record_interval_s(self) -> float:
        return min(0.2 * self.look_back_period_s, self.metrics_interval_s)


class OngoingWindow:
    """A pool's ongoing requests, as known to the controller."""

    def __init__(self, config: RayConfig) -> None:
        self._config = config
        self._samples: deque[tuple[float, float]] = deque()
        self._start, self._last, self._area, self._value = 0.0, 0.0, 0.0, 0.0

    def record(self, now: float, ongoing: float) -> None:
        """A handle's sample."""
        self._samples.append((now, ongoing))
        oldest = now - self._config.look_back_period_s
        while self._samples[0][0] <= oldest:
            self._samples.popleft()

    def push(self, now: float, newest_replica: float) -> None:
        """Report the samples to the controller; one series starts with the newest replica."""
        oldest = now - self._config.look_back_period_s
        points = [p for p in self._samples if p[0] > oldest]
        aligned = [p for p in points if p[0] >= newest_replica]
        points = aligned or points[-1:]
        if not points:
            return
        self._start, (self._last, self._value) = points[0][0], points[-1]
        pairs = pairwise(points)
        self._area = sum(v * (after - t) for (t, v), (after, _) in pairs)

    def push_asleep(self, now: float, ongoing: float) -> None:
        """Report requests for a pool without replicas immediately."""
        self._start, self._last, self._value, self._area = now, now, ongoing, 0.0

    def mean(self, now: float) -> float:
        """The time-weighted mean, as the controller computes it at ``now``."""
        width = now - self._start
        if width <= 1e-9:
            return self._value
        return (self._area + self._value * (now - self._last)) / width


class Scaler(Protocol):
    """A policy in the simulator."""

    config: RayConfig

    def tick(
        self, pools: Mapping[str, ReplicaPool], ongoing: Mapping[str, float], now: float
    ) -> dict[str, int]:
        """Target replicas from the controller's metrics."""

    def sample(self, pools: Mapping[str, ReplicaPool], now: float) -> None:
        """Replicas report their own metrics, at the metrics interval."""


class RayDefault:
    """``replica_queue_length_autoscaling_policy`` for each deployment, alone."""

    def __init__(self, config: RayConfig, targets: Mapping[str, float] | None = None) -> None:
        self.config = config
        self._targets = targets or {}
        self._wish: dict[str, tuple[int, float | None]] = {}

    def sample(self, pools: Mapping[str, ReplicaPool], now: float) -> None:
        """Does nothing: the policy uses ongoing requests only."""

    def tick(
        self, pools: Mapping[str, ReplicaPool], ongoing: Mapping[str, float], now: float
    ) -> dict[str, int]:
        plan = {}
        for name, pool in pools.items():
            n = self.step(name, pool.running, pool.target, ongoing[name], now)
            plan[name] = max(pool.spec.min_replicas, min(pool.spec.max_replicas, n))
        return plan

    def step(self, name: str, running: int, target: int, ongoing: float, now: float) -> int:
        """One decision, before the bounds on replicas are applied."""
        if running == 0 and ongoing > 0:
            return max(1, target)
        wanted: float = target
        if running:
            each = self._targets.get(name, self.config.target_ongoing_requests)
            wanted = running * (ongoing / (each * running))
        if running == 0:
            desired = math.ceil(wanted)
            if desired > 0:
                return desired
        else:
            desired = math.ceil(running + (wanted - running))
        return self._delayed(name, max(0, desired), target, now)

    def _delayed(self, name: str, desired: int, target: int, now: float) -> int:
        """A decision must persist for the delay; to zero only from one."""
        direction, since = self._wish.get(name, (0, None))
        sign = (desired > target) - (desired < target)
        if sign == 0:
            self._wish[name] = (0, None)
            return target
        if direction != sign or since is None:
            since = now
        delay = self.config.upscale_delay_s if sign > 0 else self.config.downscale_delay_s
        if now - since + 1e-6 < delay:
            self._wish[name] = (sign, since)
            return target
        self._wish[name] = (0, None)
        return desired if sign > 0 or target == 1 else max(1, desired)


class Fixed:
    """Keeps the initial replicas."""

    config = RayConfig()

    def sample(self, pools: Mapping[str, ReplicaPool], now: float) -> None:
        """Does nothing: the policy uses no metrics."""

    def tick(
        self, pools: Mapping[str, ReplicaPool], ongoing: Mapping[str, float], now: float
    ) -> dict[str, int]:
        return {}


class Shared:
    """The application's policy behind its adapter: a look-back of 2 s, without Ray's delays."""

    config = RayConfig(
        look_back_period_s=2.0, metrics_interval_s=1.0, upscale_delay_s=0.0, downscale_delay_s=0.0
    )

    def __init__(self, specs: Mapping[str, Pool], settings: ScalingSettings) -> None:
        self._specs, self._settings = specs, settings
        self._state: Mapping[str, Any] = {}
        self._metrics: dict[str, dict[str, float]] = {}
        self._seen: dict[str, deque[tuple[float, int, int, int, int, int]]] = {
            name: deque(maxlen=3) for name in specs
        }

    def sample(self, pools: Mapping[str, ReplicaPool], now: float) -> None:
        for name, pool in pools.items():
            seen = self._seen[name]
            seen.append(
                (now, pool.items_in, pool.passes, pool.items_passed, pool.lookups, pool.hits)
            )
            first, last = seen[0], seen[-1]
            if not pool.running or last[0] <= first[0]:
                self._metrics[name] = {}
                continue
            came, passes, passed, lookups, hits = (
                b - a for a, b in zip(first[1:], last[1:], strict=True)
            )
            metrics = {
                "arrivals_per_s": came / (last[0] - first[0]),
                "oldest_s": pool.oldest_s(),
            }
            if passes:
                metrics["batch_fill"] = passed / passes / pool.spec.max_batch
            if lookups:
                metrics["hit_rate"] = hits / lookups
            self._metrics[name] = metrics

    def tick(
        self, pools: Mapping[str, ReplicaPool], ongoing: Mapping[str, float], now: float
    ) -> dict[str, int]:
        loads = {
            name: Load(
                running=pool.running,
                target=pool.target,
                ongoing=ongoing[name],
                **self._metrics.get(name, {}),
            )
            for name, pool in pools.items()
        }
        plan = decide(self._specs, loads, self._state, self._settings, now)
        self._state = plan.state
        return {
            name: self._as_ray_applies(plan.replicas[name], pool, ongoing[name])
            for name, pool in pools.items()
        }

    @staticmethod
    def _as_ray_applies(wanted: int, pool: ReplicaPool, ongoing: float) -> int:
        if pool.running == 0 and ongoing > 0:
            wanted = max(1, pool.target)
        elif wanted < pool.target != 1:
            wanted = max(1, wanted)
        return max(pool.spec.min_replicas, min(pool.spec.max_replicas, wanted))
