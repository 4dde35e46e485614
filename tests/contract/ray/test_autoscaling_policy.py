"""`BudgetPolicy` as Ray's controller uses it: pickled, wrapped, fed with anything."""

from __future__ import annotations

import inspect
import json
import logging
import math
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ray.serve._private.common import DeploymentID, TimeStampedValue
from ray.serve.autoscaling_policy import _apply_app_level_autoscaling_config
from ray.serve.config import AutoscalingConfig, AutoscalingContext, AutoscalingPolicy
from ray.serve.schema import ServeDeploySchema

import serve_app.deployments.autoscaling as module
from serve_app.core.measurements import Profile
from serve_app.deployments.autoscaling import STATE_KEY, BudgetPolicy
from serve_app.scaling.reports import profile_report
from serve_app.scaling.types import Load, Pool

from ...clocks import use_clock

PATH = "serve_app.deployments.autoscaling:BudgetPolicy"


def half(most: int = 4, least: int = 0, cpus: float = 1.0, **more: Any) -> dict[str, Any]:
    return {
        "ray_actor_options": {"num_cpus": cpus},
        "batching": {"max_batch_size": 4},
        "autoscaling_config": {"min_replicas": least, "max_replicas": most, **more},
    }


def graph(**scaling: Any) -> dict[str, Any]:
    return {
        "variants": {
            "fast": {"model": "vit_t", "encoder": half(least=1), "decoder": half(least=1)},
            "accurate": {"model": "vit_t", "encoder": half(), "decoder": half()},
        },
        "scaling": {"hold_s": 5.0, "goal_ms": 500.0, **scaling},
    }


NAMES = ("fast-encoder", "fast-decoder", "accurate-encoder", "accurate-decoder", "ingress")


@dataclass
class Seen:
    """What the controller knows of one deployment."""

    running: int = 1
    target: int = 1
    requests: Any = 0.0
    stats: dict[str, Any] = field(default_factory=dict)
    config: dict[str, Any] = field(
        default_factory=lambda: {
            "min_replicas": 0,
            "max_replicas": 4,
            "upscale_delay_s": 0,
            "downscale_delay_s": 0,
        }
    )


def context(key: DeploymentID, seen: Seen, state: Mapping[str, Any]) -> AutoscalingContext:
    config = AutoscalingConfig(**seen.config)
    parameters = inspect.signature(AutoscalingContext).parameters
    other = {name: 0.0 for name, p in parameters.items() if p.default is p.empty}
    known: dict[str, Any] = {
        "deployment_id": key,
        "deployment_name": key.name,
        "app_name": key.app_name,
        "current_num_replicas": seen.running,
        "target_num_replicas": seen.target,
        "running_replicas": [],
        "total_num_requests": lambda: seen.requests,
        "total_queued_requests": 0.0,
        "aggregated_metrics": None,
        "raw_metrics": lambda: {
            name: {i: [TimeStampedValue(0.0, v)] for i, v in enumerate(values)}
            for name, values in seen.stats.items()
        },
        "capacity_adjusted_min_replicas": config.min_replicas,
        "capacity_adjusted_max_replicas": config.max_replicas,
        "policy_state": dict(state),
        "last_scale_up_time": None,
        "last_scale_down_time": None,
        "current_time": 0.0,
        "config": config,
    }
    return AutoscalingContext(**other | known)


class Controller:
    """Calls a policy as Ray does, replicas start and stop at once, and the clock is ours."""

    def __init__(
        self, monkeypatch: pytest.MonkeyPatch, policy: Callable[..., Any], **seen: Seen
    ) -> None:
        self.now = 1000.0
        use_clock(monkeypatch, lambda: self.now)  # of the project alone: event loops go on
        self.policy = _apply_app_level_autoscaling_config(policy)
        self.keys = {name: DeploymentID(name, "app") for name in NAMES}
        self.seen = {name: seen.get(name.replace("-", "_"), Seen()) for name in NAMES}
        self.states: dict[DeploymentID, dict[str, Any]] = {}

    def tick(self, seconds: float = 0.1) -> dict[str, int]:
        self.now += seconds
        contexts = {
            key: context(key, self.seen[name], self.states.get(key, {}))
            for name, key in self.keys.items()
        }
        decisions, self.states = self.policy(contexts)
        for key, wanted in decisions.items():
            assert wanted == math.ceil(wanted) >= 0
            seen = self.seen[key.name]
            least, most = seen.config["min_replicas"], seen.config["max_replicas"]
            seen.target = seen.running = max(least, min(most, math.ceil(wanted)))
        return {name: seen.target for name, seen in self.seen.items()}

    def run(self, seconds: float) -> dict[str, int]:
        for _ in range(round(seconds / 0.5)):
            self.tick(0.5)
        return {name: seen.target for name, seen in self.seen.items()}


PROFILE = Profile(encode_ms={1: 100.0, 4: 200.0}, decode_ms={1: 10.0, 4: 20.0}, cold_start_s=2.0)
"""An image takes 100 ms, four of them 200; a prompt 10 ms."""
MEASURED = {"fast": PROFILE, "accurate": PROFILE}


def with_profiles(**seen: Seen) -> dict[str, Seen]:
    """Deployments of measured variants: the ingress reports their profiles."""
    ingress = seen.get("ingress", Seen())
    ingress.stats = {name: [value] for name, value in profile_report(MEASURED).items()}
    return {**seen, "ingress": ingress}


def busy(images_per_s: float, running: int = 1) -> Seen:
    return Seen(
        running=running,
        target=running,
        requests=images_per_s * 0.2,
        stats={"arrivals_per_s": [images_per_s], "oldest_s": [0.05], "batch_fill": [0.9]},
    )


def test_replicas_follow_the_load_within_the_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    policy = BudgetPolicy(graph(budget=7.0))
    controller = Controller(monkeypatch, policy, **with_profiles(fast_encoder=busy(50.0)))
    first = controller.run(5.0)
    assert first["fast-encoder"] == 4
    controller.seen["fast-encoder"].stats = {"arrivals_per_s": [0.0]}
    controller.seen["fast-encoder"].requests = 0.0
    controller.seen["accurate-encoder"].stats = {"arrivals_per_s": [50.0]}
    controller.seen["accurate-encoder"].requests = 10.0
    for _ in range(80):
        now = controller.tick(0.5)
        assert sum(now[name] for name in NAMES[:4]) <= 7
    assert now["accurate-encoder"] == 4
    assert now["fast-encoder"] < 4
    still = controller.run(20.0)
    assert still["accurate-encoder"] == 4


def test_the_state_survives_in_what_ray_keeps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another object of the policy goes on where the first one was: nothing else remembers."""
    seen = with_profiles(fast_encoder=busy(50.0))
    controller = Controller(monkeypatch, BudgetPolicy(graph()), **seen)
    controller.run(5.0)
    kept = [state for state in controller.states.values() if STATE_KEY in state]
    assert len(kept) == 1
    assert set(kept[0][STATE_KEY]["pools"]) == set(NAMES[:4])
    level = kept[0][STATE_KEY]["pools"]["fast-encoder"]["level"]
    controller.policy = _apply_app_level_autoscaling_config(BudgetPolicy(graph()))
    controller.tick()
    (again,) = [state for state in controller.states.values() if STATE_KEY in state]
    assert again[STATE_KEY]["pools"]["fast-encoder"]["level"] == pytest.approx(level, rel=0.1)


def test_the_first_request_wakes_a_variant(monkeypatch: pytest.MonkeyPatch) -> None:
    controller = Controller(
        monkeypatch,
        BudgetPolicy(graph()),
        accurate_encoder=Seen(0, 0),
        accurate_decoder=Seen(0, 0, requests=1.0),
    )
    assert controller.tick()["accurate-decoder"] == 1
    assert controller.tick()["accurate-encoder"] >= 1


def test_requests_alone_are_no_load_until_replicas_had_time_to_tell(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Readiness is asked for while weights load: those requests are no images and no prompts."""
    asked = Seen(running=0, target=1, requests=6.0)
    controller = Controller(monkeypatch, BudgetPolicy(graph()), fast_decoder=asked)
    assert controller.run(2.0)["fast-decoder"] == 1
    asked.running = 1
    assert controller.run(3.0)["fast-decoder"] == 1
    asked.requests = 40.0
    assert controller.run(10.0)["fast-decoder"] > 1  # this one never tells: go by its requests


def test_other_deployments_scale_as_rays_default_does(monkeypatch: pytest.MonkeyPatch) -> None:
    ingress = Seen(requests=12.0)
    ingress.config["target_ongoing_requests"] = 4
    controller = Controller(monkeypatch, BudgetPolicy(graph()), ingress=ingress)
    assert controller.tick()["ingress"] == 3
    ingress.requests = 1.0
    assert controller.tick()["ingress"] == 1


def test_a_graph_that_cannot_be_read_leaves_rays_default(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for nonsense in ({"variants": 3}, {"no": "graph"}, {"variants": {}}, [1]):
        policy = BudgetPolicy(nonsense)  # type: ignore[arg-type]
        encoder = Seen(requests=8.0)
        controller = Controller(monkeypatch, policy, fast_encoder=encoder)
        assert controller.tick()["fast-encoder"] == 4  # two ongoing each


def test_without_a_profile_the_policy_uses_observed_passes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    slow = {"arrivals_per_s": [10.0], "pass_items": [1.0], "pass_ms": [250.0]}
    quick = {"arrivals_per_s": [10.0], "pass_items": [1.0], "pass_ms": [20.0]}
    for stats, replicas in ((slow, 4), (quick, 1)):
        encoder = Seen(requests=2.0, stats=stats)
        controller = Controller(monkeypatch, BudgetPolicy(graph()), fast_encoder=encoder)
        assert controller.run(5.0)["fast-encoder"] == replicas


class Spy:
    """Records the pools and loads that the policy decides about."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.pools: list[Mapping[str, Pool]] = []
        self.loads: list[Mapping[str, Load]] = []
        self._decide = module.decide
        monkeypatch.setattr(module, "decide", self)

    def __call__(self, pools: Any, loads: Any, *rest: Any) -> Any:
        self.pools.append(pools)
        self.loads.append(loads)
        return self._decide(pools, loads, *rest)


def test_a_variant_that_never_had_a_replica_is_scaled_by_its_profile(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    spy = Spy(monkeypatch)
    seen = with_profiles(accurate_encoder=Seen(0, 0), accurate_decoder=Seen(0, 0))
    controller = Controller(monkeypatch, BudgetPolicy(graph()), **seen)
    controller.tick()
    controller.seen["ingress"].stats = {}  # its replica is being replaced
    controller.tick()
    for pools in spy.pools:
        encoder, decoder = pools["accurate-encoder"], pools["accurate-decoder"]
        assert (encoder.pass_ms, encoder.cold_start_s) == ({1: 100.0, 4: 200.0}, 2.0)
        assert (decoder.pass_ms, decoder.cold_start_s) == ({1: 10.0, 4: 20.0}, 2.0)


def test_a_measured_profile_is_preferred_to_observed_passes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    spy = Spy(monkeypatch)
    slow = Seen(stats={"pass_items": [1.0], "pass_ms": [9000.0]})
    controller = Controller(
        monkeypatch, BudgetPolicy(graph()), **with_profiles(accurate_encoder=slow)
    )
    controller.tick()
    assert spy.pools[0]["accurate-encoder"].pass_ms == PROFILE.encode_ms


def test_minimum_replicas_stay_until_the_first_report(monkeypatch: pytest.MonkeyPatch) -> None:
    starting = {
        "fast_encoder": Seen(running=0, target=1),
        "fast_decoder": Seen(running=0, target=1, requests=3.0),
        "accurate_encoder": Seen(0, 0),
        "accurate_decoder": Seen(0, 0),
    }
    controller = Controller(monkeypatch, BudgetPolicy(graph()), **starting)
    for name in ("fast-encoder", "fast-decoder"):
        controller.seen[name].config["min_replicas"] = 1
    found = controller.run(4.0)
    assert [found[name] for name in NAMES[:4]] == [1, 1, 0, 0]


def three(context: AutoscalingContext) -> tuple[int, dict[str, Any]]:
    """Three, whatever happens; counts its calls."""
    return 3, {"calls": context.policy_state.get("calls", 0) + 1}


def fails(context: AutoscalingContext) -> tuple[int, dict[str, Any]]:
    raise RuntimeError("a policy of somebody else")


def test_a_deployment_keeps_a_policy_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    own = AutoscalingPolicy(policy_function=three)
    decoder, ingress = Seen(), Seen()
    decoder.config["policy"] = ingress.config["policy"] = own
    controller = Controller(
        monkeypatch,
        BudgetPolicy(graph(budget=5.0)),
        **with_profiles(fast_encoder=busy(100.0), fast_decoder=decoder, ingress=ingress),
    )
    last = controller.run(3.0)
    assert (last["fast-decoder"], last["ingress"]) == (3, 3)
    assert last["fast-encoder"] <= 2  # it left two of the five
    assert controller.states[controller.keys["fast-decoder"]]["calls"] > 1
    ingress.config["policy"] = AutoscalingPolicy(policy_function=fails)
    assert controller.run(1.0)["ingress"] == 3


def test_a_variant_without_an_encoder_deployment_is_fused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each of its passes includes encoding one image."""
    spy = Spy(monkeypatch)
    controller = Controller(monkeypatch, BudgetPolicy(graph()))
    controller.tick()
    del controller.keys["fast-encoder"]
    controller.tick()
    controller.seen |= with_profiles()
    controller.tick()
    split, unknown, fused = (pools["fast-decoder"].pass_ms for pools in spy.pools)
    assert (split, unknown) == ({1: 25.0}, {1: 275.0})
    assert fused == {1: 110.0, 4: 120.0}


def test_costs_are_gpus_where_any_half_asks_for_them() -> None:
    given = graph()
    for variant in given["variants"].values():
        variant["encoder"]["ray_actor_options"] = {"num_cpus": 0.5, "num_gpus": 0.25}
    costs = {name: pool.cost for name, pool in BudgetPolicy(given)._pools.items()}
    assert costs["fast-encoder"] == 0.25
    assert 0 < costs["fast-decoder"] < 1e-3  # takes no GPU, and nothing may divide by zero
    assert BudgetPolicy(graph())._pools["fast-encoder"].cost == 1.0


def test_a_failure_holds_wakes_and_is_logged_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(module, "decide", broken)
    monkeypatch.setattr(module, "join_serve_log", lambda: None)  # caplog listens to the root
    controller = Controller(
        monkeypatch,
        BudgetPolicy(graph()),
        fast_encoder=Seen(running=3, target=3, requests=100.0),
        accurate_decoder=Seen(0, 0, requests=1.0),
    )
    controller.states[controller.keys["fast-encoder"]] = {STATE_KEY: {"pools": {}}}
    with caplog.at_level(logging.ERROR):
        last = controller.run(10.0)
    assert (last["fast-encoder"], last["accurate-decoder"]) == (3, 1)
    assert STATE_KEY in controller.states[controller.keys["fast-encoder"]]
    assert len([r for r in caplog.records if "failed" in r.message]) == 1


ODD = st.one_of(
    st.none(),
    st.booleans(),
    st.text(max_size=3),
    st.floats(),
    st.integers(),
    st.just(10**400),
    st.lists(st.floats(), max_size=2),
)
STATS = st.dictionaries(
    st.sampled_from(["arrivals_per_s", "oldest_s", "batch_fill", "hit_rate", "pass_ms", "other"]),
    st.lists(ODD, max_size=3),
)
SEEN = st.builds(
    Seen,
    running=st.integers(0, 8),
    target=st.integers(0, 8),
    requests=st.one_of(st.floats(allow_nan=False, min_value=0, max_value=1e9), st.just(0.0)),
    stats=STATS,
)


@pytest.mark.slow
@settings(max_examples=50, deadline=None)
@given(ticks=st.lists(st.fixed_dictionaries(dict.fromkeys(NAMES, SEEN)), min_size=1, max_size=4))
def test_no_figures_of_replicas_break_it(ticks: list[dict[str, Seen]]) -> None:
    policy = _apply_app_level_autoscaling_config(BudgetPolicy(graph(budget=6.0)))
    states: dict[Any, Any] = {}
    for seen in ticks:
        contexts = {
            key: context(key, seen[name], states.get(key, {}))
            for name in NAMES
            for key in [DeploymentID(name, "app")]
        }
        replicas, states = policy(contexts)
        assert set(replicas) == set(contexts)
        for key, wanted in replicas.items():
            assert wanted == math.ceil(wanted)
            if seen[key.name].running and key.name != "ingress":
                assert 0 <= wanted <= 4


class Raises:
    """A context of which nothing can be read."""

    def __getattr__(self, name: str) -> Any:
        raise ValueError(name)


@pytest.mark.parametrize(
    "contexts",
    [
        {},
        None,
        [],
        {"fast-encoder": None},
        {DeploymentID("fast-encoder", "a"): Raises(), DeploymentID("ingress", "a"): Raises()},
        {DeploymentID("unknown", "a"): SimpleNamespace(target_num_replicas=math.nan)},
        {1: SimpleNamespace(policy_state=3, target_num_replicas="many", raw_metrics=7)},
    ],
)
def test_contexts_that_are_none_raise_nothing(contexts: Any) -> None:
    replicas, states = BudgetPolicy(graph())(contexts)
    assert all(math.isfinite(value) and value >= 0 for value in replicas.values())
    assert all(isinstance(state, dict) for state in states.values())


def test_a_state_that_is_none_of_ours_is_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    for state in (
        {STATE_KEY: 3},
        {STATE_KEY: {"pools": [1]}},
        {STATE_KEY: {"pools": {"x": math.nan}}},
    ):
        controller = Controller(monkeypatch, BudgetPolicy(graph()))
        controller.states = {key: dict(state) for key in controller.keys.values()}
        assert controller.tick()["fast-encoder"] == 1


NO_FILES = """
import json, sys
from types import SimpleNamespace
from serve_app.deployments.autoscaling import BudgetPolicy
opened = []
sys.addaudithook(lambda event, args: event == "open" and opened.append(str(args[0])))
context = SimpleNamespace(
    current_num_replicas=1, target_num_replicas=2, total_num_requests=5.0, raw_metrics={},
    policy_state={}, capacity_adjusted_min_replicas=1, capacity_adjusted_max_replicas=3,
)
BudgetPolicy(json.loads(sys.argv[1]))({"fast-encoder": context})
code = (".py", ".pyc", ".so")
print(json.dumps([path for path in opened if not path.endswith(code)]))
"""


def test_it_reads_no_files() -> None:
    """Serve's controller may run on a host without registry, weights or measurements."""
    missing = {"registry": "/nowhere/models.yaml", "weights_dir": "/nowhere/weights"}
    done = subprocess.run(
        [sys.executable, "-c", NO_FILES, json.dumps(graph() | missing)],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert json.loads(done.stdout) == []


SHIPPED = """
import inspect
import json
import sys
from types import SimpleNamespace
from ray import cloudpickle
policy, kwargs = cloudpickle.loads(sys.stdin.buffer.read()), json.loads(sys.argv[1])
context = SimpleNamespace(
    current_num_replicas=1, target_num_replicas=2, total_num_requests=0.0, raw_metrics={},
    policy_state={}, capacity_adjusted_min_replicas=1, capacity_adjusted_max_replicas=3,
)
print(policy(**kwargs)({"fast-encoder": context})[0], "torch" in sys.modules)
"""


@pytest.mark.slow
def test_ray_ships_it_by_value() -> None:
    """The controller, another process, gets the class pickled with its module's own code."""
    policy = AutoscalingPolicy(policy_function=PATH, policy_kwargs={"graph": graph()})
    done = subprocess.run(
        [sys.executable, "-c", SHIPPED, json.dumps(policy.policy_kwargs)],
        input=policy.get_serialized_policy_def(),
        capture_output=True,
        timeout=300,
    )
    answer = done.stdout.decode().strip()
    assert answer == "{'fast-encoder': 2} False", done.stderr.decode()[-2000:]


def test_a_serve_config_takes_it() -> None:
    ServeDeploySchema.model_validate(
        {
            "applications": [
                {
                    "import_path": "graphs.full:build",
                    "args": graph(),
                    "autoscaling_policy": {
                        "policy_function": PATH,
                        "policy_kwargs": {"graph": graph()},
                    },
                }
            ]
        }
    )
