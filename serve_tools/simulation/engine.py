"""One run: a trace through router, pools and scaling policy."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from serve_app.core.measurements import best_ms_per_item
from serve_app.routing.router import NoEligibleVariant, choose_variant
from serve_app.routing.types import RoutingQuery, VariantState
from serve_tools.simulation.clock import Clock, Device, Noise
from serve_tools.simulation.cluster import Cluster, ReplicaPool, SimulatedRequest
from serve_tools.simulation.policies import OngoingWindow, Scaler
from serve_tools.simulation.scenario import ACCURATE, FAST, Scale
from serve_tools.simulation.traces import Trace, arrivals, requests_per_s

KINDS = ("plain", "strict_quality", "bounded")
"""No hint; ``min_quality`` that only the accurate variant reaches; the best within a time."""

OUTCOMES = ("completed", "refused", "timeout", "lost")
"""``refused``: a full queue, or no variant meets a hint; ``timeout``: it waited too long; ``lost``:
its replica died."""

_CONTROL_LOOP_S = 0.1
_TIMEOUT_S = 60.0
_WARM_UTILISATION = 0.7
_ROWS_PER_S = 250.0
"""Simulated arrivals per second at full load; above that, each stands for several requests."""


@dataclass(frozen=True, slots=True)
class Options:
    """Options of a run.

    Attributes:
        seed: of arrivals and service times.
        warm_s: seconds at the trace's first load that are not reported.
        noise: standard deviation of the logarithm of a pass's time.
        rows_per_s: see `_ROWS_PER_S`.
        shared_device: passes of all replicas share one device's time.
        timeout_s: a request gives up waiting.
    """

    seed: int = 0
    warm_s: float = 10.0
    noise: float = 0.1
    rows_per_s: float = _ROWS_PER_S
    shared_device: bool = False
    timeout_s: float = _TIMEOUT_S


@dataclass(slots=True)
class Timeline:
    """State over time for the plots, one entry per second."""

    t: list[float] = field(default_factory=list)
    running: dict[str, list[int]] = field(default_factory=dict)
    units: list[float] = field(default_factory=list)
    waiting: list[int] = field(default_factory=list)


@dataclass(slots=True)
class Run:
    """Results of a run, without the warm-up.

    Attributes:
        t, latency_s, kind, outcome, missed, accurate: a row for each simulated arrival; latency
            is that of completed ones, missed is true if the goal was not met for any reason.
        weight: requests that a row stands for.
        unit_hours: paid from a replica's start to its end.
        starts, stops: replicas that the policy added and took.
        decisions: of the policy to change a pool's number.
    """

    t: NDArray[np.float64]
    latency_s: NDArray[np.float64]
    kind: NDArray[np.int64]
    outcome: NDArray[np.int64]
    missed: NDArray[np.bool_]
    accurate: NDArray[np.bool_]
    weight: int
    unit_hours: float
    starts: int
    stops: int
    decisions: int
    timeline: Timeline


@dataclass(frozen=True, slots=True)
class CostSnapshot:
    """Costs of a run up to a moment."""

    unit_s: float = 0.0
    starts: int = 0
    stops: int = 0
    decisions: int = 0


class Simulation:
    """The graph in simulated time.

    Args:
        scale: the cluster and what is deployed on it.
        trace: the load.
        scaler: the scaling policy under test.
        options: how the run is made.
    """

    def __init__(self, scale: Scale, trace: Trace, scaler: Scaler, options: Options) -> None:
        self._scale, self._trace, self._scaler, self._options = scale, trace, scaler, options
        rng = np.random.default_rng(options.seed)
        peak = max(
            requests_per_s(scale, trace, t) for t in np.linspace(0, trace.seconds - 1, 200).tolist()
        )
        weight = max(1, round(peak / options.rows_per_s))
        self._arrivals = arrivals(trace, scale, rng, warm_s=options.warm_s, weight=weight)
        self._clock = Clock()
        device = Device(self._clock) if options.shared_device else None
        self._cluster = Cluster(self._clock, scale.budget, Noise(rng, options.noise), device)
        self._pools: dict[str, ReplicaPool] = {}
        for name, deployment in scale.deployments.items():
            encoder = deployment.pool.role == "encoder"
            self._pools[name] = ReplicaPool(
                deployment,
                self._cluster,
                options.timeout_s,
                self._encoder_admits if encoder else self._decoder_admits,
                self._encoded if encoder else self._decoded,
                self._gave_up,
            )
        self._encoders = {v: self._pools[f"{v}-encoder"] for v in scale.profiles}
        self._decoders = {v: self._pools[f"{v}-decoder"] for v in scale.profiles}
        self._windows = {name: OngoingWindow(scaler.config) for name in self._pools}
        self._cached: dict[str, OrderedDict[int, None]] = {v: OrderedDict() for v in scale.profiles}
        self._same: dict[tuple[str, int], list[SimulatedRequest]] = {}
        self._asks = self._all_asks()
        self._over = False
        n = len(self._arrivals.t)
        self._latency = np.full(n, np.nan)
        self._outcome = np.full(n, -1, dtype=np.int64)
        self._accurate = np.zeros(n, dtype=np.bool_)
        self.timeline = Timeline(running={name: [] for name in self._pools})

    def run(self) -> Run:
        """Simulate to the last response."""
        clock, rows, warm_s = self._clock, self._arrivals, self._options.warm_s
        kinds = np.where(rows.quality, np.where(rows.bounded, 2, 1), 0)
        goal = self._scale.goal_ms
        goals = np.where(rows.quality, goal[ACCURATE], goal[FAST]) / 1e3
        columns = zip(
            rows.t.tolist(), kinds.tolist(), goals.tolist(), rows.prompts.tolist(),
            rows.image.tolist(), strict=True,
        )  # fmt: skip
        self._begin()
        first: CostSnapshot | None = None
        for row, (t, kind, goal_s, prompts, image) in enumerate(columns):
            if first is None and t >= warm_s:
                clock.run_until(warm_s)
                first = self._costs()
            clock.run_until(t)
            self._arrive(SimulatedRequest(t, rows.weight, kind, goal_s, prompts, image, row))
        clock.run_until(warm_s + self._trace.seconds)
        last = self._costs()
        self._over = True
        clock.run_out()
        for pool in (*self._decoders.values(), *self._encoders.values()):
            pool.close()
        return self._report(kinds, goals, first or CostSnapshot(), last)

    # -- periodic calls

    def _begin(self) -> None:
        trace, mix = self._trace, self._trace.mix(0)
        rate = requests_per_s(self._scale, trace, 0)
        prompts = sum(trace.prompts) / len(trace.prompts)
        for pool in sorted(self._pools.values(), key=lambda pool: pool.spec.cost):
            spec = pool.spec
            part = rate * (mix if spec.variant == ACCURATE else 1 - mix)
            items = part * (trace.new if spec.role == "encoder" else prompts)
            best = best_ms_per_item(spec.pass_ms, spec.max_batch) / 1e3
            needed = max(math.ceil(items * best / _WARM_UTILISATION), spec.min_replicas)
            room = math.floor((self._scale.budget - self._cluster.used) / spec.cost + 1e-9)
            pool.warm(min(needed, spec.max_replicas, room))
        for variant, cached in self._cached.items():
            known = max(1, self._scale.images // self._arrivals.weight)
            cached.update(dict.fromkeys(range(known)))
            self._cached[variant] = cached
        config = self._scaler.config
        self._every(config.record_interval_s, self._record)
        self._every(config.metrics_interval_s, self._push)
        self._every(_CONTROL_LOOP_S, self._tick)
        self._every(1.0, self._note)
        for t, name in self._trace.deaths:
            self._clock.at(self._options.warm_s + t, self._pools[name].die)

    def _every(self, seconds: float, call: Callable[[], None]) -> None:
        def again(_: object) -> None:
            if not self._over:
                call()
                self._clock.at(self._clock.now + seconds, again)

        self._clock.at(0.0, again)

    def _record(self) -> None:
        for name, pool in self._pools.items():
            self._windows[name].record(self._clock.now, pool.ongoing)

    def _push(self) -> None:
        for name, pool in self._pools.items():
            self._windows[name].push(self._clock.now, pool.newest_at)
        self._scaler.sample(self._pools, self._clock.now)

    def _push_asleep(self, pool: ReplicaPool) -> None:
        self._windows[pool.spec.name].push_asleep(self._clock.now, pool.ongoing)

    def _tick(self) -> None:
        now = self._clock.now
        ongoing = {name: window.mean(now) for name, window in self._windows.items()}
        for name, target in self._scaler.tick(self._pools, ongoing, now).items():
            if target != self._pools[name].target:
                self._pools[name].scale(target)

    def _note(self) -> None:
        if self._clock.now < self._options.warm_s:
            return
        timeline = self.timeline
        timeline.t.append(self._clock.now - self._options.warm_s)
        for name, pool in self._pools.items():
            timeline.running[name].append(pool.running)
        timeline.units.append(self._cluster.used)
        timeline.waiting.append(sum(pool.ongoing for pool in self._decoders.values()))

    def _costs(self) -> CostSnapshot:
        """Costs so far, including running replicas until now."""
        now, pools = self._clock.now, self._pools.values()
        spent = self._cluster.unit_s + sum(
            replica.pool.spec.cost * (now - replica.started) for replica in self._cluster.placed
        )
        return CostSnapshot(
            spent,
            sum(pool.starts for pool in pools),
            sum(pool.stops for pool in pools),
            sum(pool.changes for pool in pools),
        )

    # -- steps of a request

    def _arrive(self, request: SimulatedRequest) -> None:
        key = (request.kind, request.prompts)
        variants = {
            variant: self._situation(variant, request.image) for variant in self._scale.profiles
        }
        try:
            choice = choose_variant(
                self._asks[key], variants, self._scale.profiles, self._scale.router
            )
        except NoEligibleVariant:
            self._finish(request, "refused")
            return
        request.variant = choice.variant
        decoder = self._decoders[choice.variant]
        if not decoder.enter(request):
            self._finish(request, "refused")
        elif not decoder.running:
            self._push_asleep(decoder)

    def _situation(self, variant: str, image: int) -> VariantState:
        encoder, decoder = self._encoders[variant], self._decoders[variant]
        return VariantState(
            encoders=encoder.running,
            decoders=decoder.running,
            images=encoder.queued + encoder.waiting + encoder.in_passes,
            prompts=decoder.queued + decoder.waiting + decoder.in_passes,
            oldest_ms=1e3 * max(encoder.oldest_s(), decoder.oldest_s()),
            cached=image in self._cached[variant],
            encoder_batch=encoder.spec.max_batch,
            decoder_batch=decoder.spec.max_batch,
        )

    def _decoder_admits(self, request: SimulatedRequest) -> None:
        variant, image = request.variant, request.image
        decoder, cached = self._decoders[variant], self._cached[variant]
        decoder.lookups += request.weight
        if image in cached:
            cached.move_to_end(image)
            decoder.hits += request.weight
            decoder.push(request, request.weight * request.prompts)
            return
        key = (variant, image)
        others = self._same.get(key)
        if others is not None:
            others.append(request)
            return
        self._same[key] = []
        request.encodes = True
        encoder = self._encoders[variant]
        if not encoder.enter(request):
            self._gave_up(request, "refused")
        elif not encoder.running:
            self._push_asleep(encoder)

    def _encoder_admits(self, request: SimulatedRequest) -> None:
        self._encoders[request.variant].push(request, request.weight)

    def _encoded(self, request: SimulatedRequest) -> None:
        variant, image = request.variant, request.image
        cached = self._cached[variant]
        cached[image] = None
        if len(cached) * request.weight > self._scale.cached:
            cached.popitem(last=False)
        waiting = self._same.pop((variant, image))
        request.encodes = False
        self._encoders[variant].leave(request)
        decoder = self._decoders[variant]
        for each in (request, *waiting):
            decoder.push(each, each.weight * each.prompts)

    def _decoded(self, request: SimulatedRequest) -> None:
        self._finish(request, "completed")
        self._decoders[request.variant].leave(request)

    def _gave_up(self, request: SimulatedRequest, why: str) -> None:
        """End a request early, and with it the requests that wait for its embedding."""
        key = (request.variant, request.image)
        waiting = self._same.pop(key) if request.encodes else []
        for each in (request, *waiting):
            self._finish(each, why)
        if request.slots == 2:
            self._encoders[request.variant].leave(request)
        for each in (request, *waiting):
            if each.slots:
                self._decoders[request.variant].leave(each)

    def _finish(self, request: SimulatedRequest, outcome: str) -> None:
        request.done = True
        row = request.row
        if self._outcome[row] >= 0:
            raise AssertionError("a request ended twice")
        self._outcome[row] = OUTCOMES.index(outcome)
        self._accurate[row] = request.variant == ACCURATE
        if outcome == "completed":
            self._latency[row] = self._clock.now - request.t

    def _all_asks(self) -> dict[tuple[int, int], RoutingQuery]:
        """By kind and prompts."""
        profiles = self._scale.profiles
        least = (profiles[FAST].quality["box"] + profiles[ACCURATE].quality["box"]) / 2
        most = self._scale.goal_ms[ACCURATE]
        return {
            (kind, n): RoutingQuery(
                prompts=n,
                min_quality=least if name == "strict_quality" else None,
                max_latency_ms=most if name == "bounded" else None,
            )
            for kind, name in enumerate(KINDS)
            for n in set(self._trace.prompts)
        }

    def _report(
        self,
        kinds: NDArray[np.int64],
        goals: NDArray[np.float64],
        first: CostSnapshot,
        last: CostSnapshot,
    ) -> Run:
        rows, latency = self._arrivals, self._latency
        kept = rows.t >= self._options.warm_s
        late = ~(latency <= goals)
        return Run(
            t=rows.t[kept] - self._options.warm_s,
            latency_s=latency[kept],
            kind=kinds[kept],
            outcome=self._outcome[kept],
            missed=late[kept],
            accurate=self._accurate[kept],
            weight=rows.weight,
            unit_hours=(last.unit_s - first.unit_s) / 3600,
            starts=last.starts - first.starts,
            stops=last.stops - first.stops,
            decisions=last.decisions - first.decisions,
            timeline=self.timeline,
        )
