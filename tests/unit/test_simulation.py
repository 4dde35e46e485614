"""The simulator against theory, against itself, and against Ray's own functions."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from ray.serve.autoscaling_policy import (
    _apply_app_level_autoscaling_config,
    _apply_autoscaling_config,
    replica_queue_length_autoscaling_policy,
)
from ray.serve.config import AutoscalingConfig

from serve_app.core.measurements import Profile
from serve_app.scaling.types import Pool
from serve_tools.simulation.clock import Clock, Device, Noise
from serve_tools.simulation.cluster import Cluster, ReplicaPool, SimulatedRequest
from serve_tools.simulation.comparison import DEFAULT, OURS, TUNED, RunSummary, shortfalls, simulate
from serve_tools.simulation.engine import OUTCOMES, Options, Simulation
from serve_tools.simulation.live import predict
from serve_tools.simulation.policies import Fixed, OngoingWindow, RayConfig, RayDefault, Shared
from serve_tools.simulation.scenario import Deployment, Scale, scales, with_profiles
from serve_tools.simulation.traces import Trace, requests_per_s, traces

pytestmark = pytest.mark.slow

SMALL = scales()["2-cores"]
GPU = scales()["1-gpu"]


def short(name: str, minutes: float) -> Trace:
    return replace(traces()[name], seconds=60 * minutes)


def constant(load: float, minutes: float, **changes: Any) -> Trace:
    return replace(
        Trace("flat", 60 * minutes, lambda t: load, lambda t: 0.1, lambda t: 0.0), **changes
    )


@pytest.mark.parametrize("policy", [OURS, DEFAULT, TUNED])
def test_a_seed_makes_a_run(policy: str) -> None:
    trace = short("burst", 4)
    first, again = (simulate(SMALL, trace, policy, Options(seed=3))[0] for _ in range(2))
    other, _ = simulate(SMALL, trace, policy, Options(seed=4))
    assert first == again
    assert first != other


@pytest.mark.parametrize("policy", [OURS, DEFAULT])
@pytest.mark.parametrize("name", ["burst", "dead", "shift"])
def test_every_request_ends_once_and_nothing_is_left_over(name: str, policy: str) -> None:
    """The overload makes queues, refusals and time-outs; the dead replica loses requests."""
    trace = replace(
        short(name, 12),
        load=lambda t: 1.3,
        deaths=((100, "fast-encoder"), (200, "fast-decoder"), (300, "fast-encoder")),
    )
    scaler = Shared(SMALL.pools, SMALL.scaling) if policy == OURS else RayDefault(RayConfig())
    simulation = Simulation(SMALL, trace, scaler, Options(seed=1, timeout_s=20))
    run = simulation.run()
    assert set(run.outcome.tolist()) <= set(range(len(OUTCOMES)))
    assert (run.outcome == OUTCOMES.index("completed")).sum() == (~np.isnan(run.latency_s)).sum()
    assert len(set(run.outcome.tolist())) >= 3
    for pool in simulation._pools.values():
        assert (pool.slots, pool.queued, pool.waiting, pool.in_passes) == (0, 0, 0, 0)
    assert simulation._same == {}
    # A deadline that passed in a queue is not answered.
    assert np.nanmax(run.latency_s) < 20 + 30


def test_capacity_bounds_what_runs_and_what_is_paid() -> None:
    for policy in (OURS, DEFAULT, TUNED):
        trace = replace(short("step", 8), load=lambda t: 1.5)
        _, run = simulate(SMALL, trace, policy, Options())
        assert max(run.timeline.units) <= SMALL.budget + 1e-9
        assert run.unit_hours <= SMALL.budget * 8 / 60 + 1e-6


def one_pool(
    table: dict[int, float], batch: int, *, replicas: int = 1, sigma: float = 0.0
) -> tuple[Clock, ReplicaPool, list[float]]:
    clock = Clock()
    cluster = Cluster(clock, 100.0, Noise(np.random.default_rng(0), sigma))
    pool = Pool("p", "fast", "decoder", 1.0, 0, 100, batch, table, 5.0)
    waits: list[float] = []

    def served(request: SimulatedRequest) -> None:
        waits.append(clock.now - request.t)
        made.leave(request)

    made = ReplicaPool(
        Deployment(pool, 10**6, 10**6), cluster, 1e9, lambda r: made.push(r, 1), served,
        lambda r, why: None,
    )  # fmt: skip
    made.warm(replicas)
    return clock, made, waits


def feed(clock: Clock, pool: ReplicaPool, rate: float, count: int, seed: int = 0) -> float:
    """Poisson arrivals of single items; returns the time of the last answer."""
    rng = np.random.default_rng(seed)
    for i, t in enumerate(np.cumsum(rng.exponential(1 / rate, count)).tolist()):
        clock.run_until(t)
        pool.enter(SimulatedRequest(t, 1, 0, 1.0, 1, i, i))
    clock.run_out()
    return clock.now


@pytest.mark.parametrize("utilisation", [0.3, 0.6, 0.8])
def test_one_server_of_constant_time_waits_as_theory_says(utilisation: float) -> None:
    """M/D/1: the mean time is s (1 + rho / (2 (1 - rho)))."""
    clock, pool, times = one_pool({1: 100.0}, 1)
    feed(clock, pool, utilisation / 0.1, 60_000)
    expected = 0.1 * (1 + utilisation / (2 * (1 - utilisation)))
    assert np.mean(times) == pytest.approx(expected, rel=0.05)


def test_batches_form_when_a_replica_is_free() -> None:
    """At 3 times a single item's rate, batches grow until they keep up: a + b n = n / rate."""
    clock, pool, times = one_pool({1: 110.0, 21: 310.0}, 21)
    feed(clock, pool, 30.0, 20_000)
    mean_batch = pool.items_passed / pool.passes
    assert mean_batch == pytest.approx(0.1 * 30 / (1 - 0.01 * 30), rel=0.1)
    assert len(times) == 20_000


def test_littles_law_holds_in_a_whole_run() -> None:
    trace = constant(0.5, 8)
    simulation = Simulation(GPU, trace, Fixed(), Options(warm_s=0))
    run = simulation.run()
    ongoing = float(np.mean(simulation.timeline.waiting))
    rate = len(run.t) / trace.seconds
    assert ongoing == pytest.approx(rate * float(np.nanmean(run.latency_s)), rel=0.1)


def test_a_shared_device_slows_all_alike() -> None:
    clock = Clock()
    device = Device(clock)
    ended: dict[str, float] = {}

    def end(name: str) -> None:
        ended[name] = clock.now

    device.start(1.0, end, "alone at first")
    clock.run_until(0.5)
    device.start(0.25, end, "short")
    device.start(2.0, end, "long")
    clock.run_out()
    # From 0.5 s on three share: the short one has its 0.25 s at 1.25; two share until 1.75.
    assert ended == pytest.approx({"short": 1.25, "alone at first": 1.75, "long": 3.25})


def test_the_live_prediction_is_the_work_where_nobody_else_is_and_grows_with_load() -> None:
    profile = Profile({1: 500.0}, {1: 50.0}, {"box": 0.8}, 5.0)
    scale = with_profiles(SMALL, {"fast": profile})
    idle = predict(scale, rate=0.01, new=1.0, minutes=600)
    assert idle["p50_ms"] == pytest.approx(550, rel=0.05)
    busy = predict(scale, rate=1.2, new=1.0, minutes=60)
    assert busy["p50_ms"] > 1.2 * idle["p50_ms"]


def test_rows_of_many_requests_tell_the_same() -> None:
    trace, scale = constant(0.6, 0.5), scales()["8-gpus"]
    one, _ = simulate(scale, trace, OURS, Options(rows_per_s=1e9))
    many, _ = simulate(scale, trace, OURS, Options(rows_per_s=250))
    assert many.requests == pytest.approx(one.requests, rel=0.03)
    assert many.p50_ms == pytest.approx(one.p50_ms, rel=0.35)
    assert many.unit_hours == pytest.approx(one.unit_hours, rel=0.1)


def test_loads_are_shares_of_the_budget() -> None:
    """At a load of 0.5 full batches would keep half the budget busy."""
    trace = constant(0.5, 1)
    rate = requests_per_s(GPU, trace, 0)
    fast = GPU.units_per_request("fast", 0.5, 2.0)
    accurate = GPU.units_per_request("accurate", 0.5, 2.0)
    assert rate * (0.9 * fast + 0.1 * accurate) == pytest.approx(0.5 * GPU.budget)
    for made in traces().values():
        mean = np.mean([made.load(t) for t in np.arange(0, made.seconds)])
        assert 0.3 <= mean <= 0.7


def test_a_death_is_a_loss_and_a_replacement() -> None:
    trace = constant(0.5, 4, deaths=((60.0, "fast-encoder"),))
    simulation = Simulation(GPU, trace, Fixed(), Options(warm_s=0))
    run = simulation.run()
    assert (run.outcome == OUTCOMES.index("lost")).sum() >= 1
    running = simulation.timeline.running["fast-encoder"]
    assert running[62] == running[58] - 1
    assert running[-1] == running[58]


def test_a_known_image_needs_no_encoder() -> None:
    hot = replace(constant(0.4, 3), hot=lambda t: 0.9)
    plain = Simulation(GPU, constant(0.4, 3), Fixed(), Options())
    many = Simulation(GPU, hot, Fixed(), Options())
    rows = [len(s.run().t) * s._arrivals.weight for s in (plain, many)]
    assert rows[1] > 8 * rows[0]
    images = [s._pools["fast-encoder"].items_in for s in (plain, many)]
    assert images[1] == pytest.approx(images[0], rel=0.15)


# -- Ray's own decisions


def config(ray: RayConfig, **bounds: Any) -> AutoscalingConfig:
    return AutoscalingConfig(
        target_ongoing_requests=ray.target_ongoing_requests,
        upscale_delay_s=ray.upscale_delay_s,
        downscale_delay_s=ray.downscale_delay_s,
        **bounds,
    )


def courses() -> list[list[tuple[int, float]]]:
    """ReplicaPool that run and ongoing requests, by step: at random, with all that matters."""
    rng = np.random.default_rng(7)
    made = []
    for _ in range(20):
        level, lag, course = 0.0, int(rng.integers(0, 60)), []
        for _ in range(600):
            if rng.random() < 0.02:
                level = float(rng.choice([0.0, 0.0, 1.0, 7.0, 40.0, 200.0]))
            course.append((lag, max(0.0, level + rng.normal(0, 0.2 * level))))
        made.append(course)
    return made


@pytest.mark.parametrize(
    "ray", [RayConfig(), RayConfig(16.0, 5.0, 1.0, 5.0, 60.0)], ids=["default", "tuned"]
)
def test_the_default_policy_decides_as_rays_own_functions_do(
    ray: RayConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0.0
    monkeypatch.setattr("ray.serve.autoscaling_policy.time", SimpleNamespace(time=lambda: now))
    theirs = _apply_autoscaling_config(replica_queue_length_autoscaling_policy)
    settings = config(ray, min_replicas=0, max_replicas=50)
    seen = set()
    for course in courses():
        ours, state, target, targets = RayDefault(ray), {}, 0, []
        for lag, ongoing in course:
            now += 2.0
            targets.append(target)
            # ReplicaPool run some steps after they were asked for.
            running = min(target, targets[max(0, len(targets) - 1 - lag // 10)])
            context = SimpleNamespace(
                config=settings,
                current_num_replicas=running,
                target_num_replicas=target,
                total_num_requests=ongoing,
                policy_state=state,
            )
            decided, state = theirs(context)
            assert ours.step("d", running, target, ongoing, now) == math.ceil(decided)
            seen.add((decided > target) - (decided < target))
            target = max(0, min(50, math.ceil(decided)))
    assert seen == {-1, 0, 1}


def test_rays_rules_around_our_policy_are_rays_own() -> None:
    settings = config(Shared.config, min_replicas=0, max_replicas=50)
    rng = np.random.default_rng(1)
    for _ in range(2000):
        wanted, target, running = (int(n) for n in rng.integers(0, 8, 3))
        running = min(running, target)
        ongoing = float(rng.choice([0.0, 3.0]))
        wrapped = _apply_app_level_autoscaling_config(lambda contexts, n=wanted: ({"d": n}, {}))
        context = SimpleNamespace(
            config=settings,
            current_num_replicas=running,
            target_num_replicas=target,
            total_num_requests=ongoing,
            policy_state={},
        )
        theirs, _ = wrapped({"d": context})
        pool = SimpleNamespace(
            running=running,
            target=target,
            spec=SimpleNamespace(min_replicas=0, max_replicas=50),
        )
        assert Shared._as_ray_applies(wanted, pool, ongoing) == math.ceil(theirs["d"])


def test_the_defaults_are_rays() -> None:
    ray, ours = AutoscalingConfig(), RayConfig()
    assert ours == RayConfig(
        ray.target_ongoing_requests,
        ray.look_back_period_s,
        ray.metrics_interval_s,
        ray.upscale_delay_s,
        ray.downscale_delay_s,
    )


def test_the_window_is_the_time_weighted_mean_that_the_controller_computes() -> None:
    """Samples at 6, 12, ... s, pushed at 30 s, asked at 34 s: the last holds until then."""
    window = OngoingWindow(RayConfig())
    samples = [(6.0, 4.0), (12.0, 8.0), (18.0, 0.0), (24.0, 2.0), (30.0, 10.0)]
    for t, value in samples:
        window.record(t, value)
    window.push(30.0, newest_replica=0.0)
    area = sum(v * (b - a) for (a, v), (b, _) in pairwise([*samples, (34.0, 0.0)]))
    assert window.mean(34.0) == pytest.approx(area / 28)
    # A replica that is new shortens the window to what its own series covers.
    window.push(30.0, newest_replica=20.0)
    assert window.mean(34.0) == pytest.approx((2 * 6 + 10 * 4) / 10)
    # And what is older than the look-back is forgotten.
    for t in (36.0, 42.0, 48.0):
        window.record(t, 1.0)
    window.push(48.0, newest_replica=0.0)
    assert window.mean(48.0) == pytest.approx((2 * 6 + 10 * 6 + 1 * 12) / 24)


def test_what_waits_for_a_sleeping_pool_is_told_at_once() -> None:
    window = OngoingWindow(RayConfig())
    window.record(0.0, 0.0)
    window.push(0.0, 0.0)
    window.push_asleep(3.0, 1)
    assert window.mean(3.0) > 0


# -- the report


def row(policy: str, missed: float, hours: float, changes: int) -> RunSummary:
    return RunSummary("s", "t", policy, 1, 1.0, 1.0, 1.0, missed, 0.0, hours, changes, 1, {}, {})


@pytest.mark.parametrize(
    ("ours", "default", "short_in"),
    [
        ((0.10, 1.0, 5), (0.20, 1.0, 5), []),
        ((0.11, 1.0, 5), (0.20, 1.0, 5), ["missed"]),
        ((0.004, 1.0, 5), (0.0, 1.0, 5), []),
        ((0.006, 1.0, 5), (0.001, 1.0, 5), ["missed"]),
        ((0.0, 1.02, 6), (0.2, 1.0, 5), ["hours", "changes"]),
    ],
)
def test_what_falls_short_is_said(
    ours: tuple[float, float, int], default: tuple[float, float, int], short_in: list[str]
) -> None:
    assert shortfalls({OURS: row(OURS, *ours), DEFAULT: row(DEFAULT, *default)}) == short_in


def test_sixty_four_gpus_answer_ten_thousand_requests_a_second() -> None:
    scale: Scale = scales()["64-gpus"]
    trace = replace(constant(0.65, 1), seconds=20)
    found, _ = simulate(scale, trace, OURS, Options())
    assert found.requests_per_s == pytest.approx(10_000, rel=0.1)
    assert found.missed < 0.01
