"""The scaling policy on hostile input: it never raises and never leaves its bounds."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serve_app.core.settings import ScalingSettings
from serve_app.scaling.policy import decide
from serve_app.scaling.types import Load, Pool, ScalingDecision

pytestmark = pytest.mark.slow

ABSURD = (None, math.nan, math.inf, -math.inf, -1, -1e300, 1e300, 10**400, True, "7", [], {}, b"x")
NAMES = ("fast-encoder", "fast-decoder", "accurate-encoder", "accurate-decoder")

figures = st.one_of(
    st.sampled_from(ABSURD),
    st.floats(allow_nan=True, allow_infinity=True),
    st.integers(-5, 10**9),
    st.floats(0, 500),
)
loads = st.builds(
    Load,
    running=figures,
    target=figures,
    ongoing=figures,
    oldest_s=figures,
    arrivals_per_s=figures,
    batch_fill=figures,
    hit_rate=figures,
)
anything = st.recursive(
    st.one_of(figures, st.text(max_size=5)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=8), inner, max_size=4)
    ),
    max_leaves=10,
)
KEYS = ("t", "level", "queue", "marks", "idle", "usual", "spare", "replicas")
states = st.one_of(
    anything,
    st.fixed_dictionaries(
        {
            "pools": st.dictionaries(
                st.sampled_from((*NAMES, "gone")),
                st.one_of(anything, st.dictionaries(st.sampled_from(KEYS), anything)),
            )
        }
    ),
)


@st.composite
def pools(draw: st.DrawFn) -> dict[str, Pool]:
    made = {}
    for name in draw(st.sets(st.sampled_from(NAMES))):
        least = draw(st.integers(0, 5))
        made[name] = Pool(
            name=name,
            variant=name.split("-")[0],
            role="encoder" if name.endswith("encoder") else "decoder",
            cost=draw(st.floats(0.01, 4)),
            min_replicas=least,
            max_replicas=least + draw(st.integers(0, 50)),
            max_batch=draw(st.integers(1, 128)),
            pass_ms=draw(
                st.dictionaries(st.integers(1, 128), st.floats(0.1, 1e5), min_size=1, max_size=5)
            ),
            cold_start_s=draw(st.floats(0.1, 300)),
        )
    return made


knobs = st.builds(
    ScalingSettings,
    budget=st.one_of(st.none(), st.floats(0.01, 100)),
    goal_ms=st.floats(1, 1e5),
    utilisation=st.floats(0.1, 1),
    surge=st.floats(1, 10),
    reserve=st.floats(0, 1),
    hold_s=st.floats(0.1, 1000),
)


def check(plan: ScalingDecision, given_pools: dict[str, Pool], budget: float | None) -> None:
    assert plan.replicas.keys() == given_pools.keys()
    for name, pool in given_pools.items():
        n = plan.replicas[name]
        assert type(n) is int
        assert pool.min_replicas <= n <= pool.max_replicas
    if budget is not None:
        least = sum(p.cost * p.min_replicas for p in given_pools.values())
        spent = sum(p.cost * plan.replicas[name] for name, p in given_pools.items())
        assert spent <= max(least, budget) * (1 + 1e-9) + 1e-9
    assert json.loads(json.dumps(plan.state, allow_nan=False)) == plan.state
    assert plan.reasons.keys() <= given_pools.keys()


@settings(max_examples=400, deadline=None)
@given(
    pools(),
    st.lists(st.dictionaries(st.sampled_from((*NAMES, "gone")), loads), min_size=1, max_size=4),
    states,
    knobs,
    st.floats(0, 2e9),
)
def test_never_raises_and_stays_within_bounds(
    the_pools: dict[str, Pool],
    course: list[dict[str, Load]],
    state: Any,
    the_knobs: ScalingSettings,
    start: float,
) -> None:
    for i, the_loads in enumerate(course):
        plan = decide(the_pools, the_loads, state, the_knobs, start + 0.1 * i)
        check(plan, the_pools, the_knobs.budget)
        state = json.loads(json.dumps(plan.state))


@settings(max_examples=200, deadline=None)
@given(pools(), anything, anything, figures)
def test_arguments_of_any_type(
    the_pools: dict[str, Pool], the_loads: Any, state: Any, now: Any
) -> None:
    plan = decide(the_pools, the_loads, state, ScalingSettings(budget=3), now)
    check(plan, the_pools, 3)


@pytest.mark.parametrize("absurd", ABSURD, ids=repr)
def test_the_last_good_answer_holds_while_figures_are_absurd(absurd: Any) -> None:
    pool = Pool("d", "fast", "decoder", 1, 0, 10, 8, {1: 10, 8: 40}, 5)
    good = Load(running=3, target=3, ongoing=4, arrivals_per_s=350)
    state: Any = {}
    for i in range(50):
        plan = decide({"d": pool}, {"d": good}, state, ScalingSettings(), 100 + 0.1 * i)
        state = plan.state
    assert plan.replicas == {"d": 3}
    bad = Load(absurd, absurd, absurd, absurd, absurd, absurd, absurd)
    for i in range(100):
        plan = decide({"d": pool}, {"d": bad}, state, ScalingSettings(), 105 + 60 * i)
        state = plan.state
        assert plan.replicas == {"d": 3}


@pytest.mark.parametrize(
    "broken",
    [
        {"pass_ms": {}},
        {"pass_ms": {1: math.nan}},
        {"pass_ms": {1: 0.0}},
        {"pass_ms": {1: -5.0}},
        {"cost": 0.0},
        {"cold_start_s": math.nan},
        {"cold_start_s": 0.0},
        {"max_batch": 0},
    ],
    ids=repr,
)
def test_a_pool_with_senseless_figures_stays_within_its_bounds(broken: dict[str, Any]) -> None:
    pool = Pool("d", "fast", "decoder", 1, 0, 10, 8, {1: 10, 8: 40}, 5)
    load = Load(running=3, target=3, ongoing=4, arrivals_per_s=100)
    for budget in (None, 5):
        knobs = ScalingSettings(budget=budget)
        plan = decide({"d": replace(pool, **broken)}, {"d": load}, {}, knobs, 1.0)
        assert 0 <= plan.replicas["d"] <= 10
        json.dumps(plan.state, allow_nan=False)
