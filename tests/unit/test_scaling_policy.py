"""What the scaling policy does, driven by a course of loads."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from types import FrameType
from typing import Any

import pytest

from serve_app.core.settings import ScalingSettings
from serve_app.scaling.policy import decide
from serve_app.scaling.types import Load, Pool

ENCODE = {1: 25.0, 4: 70.0, 8: 130.0}
DECODE = {1: 6.0, 32: 20.0}


def pool(name: str, **changes: Any) -> Pool:
    variant, role = name.split("-")
    encoder = role == "encoder"
    made = Pool(
        name=name,
        variant=variant,
        role="encoder" if encoder else "decoder",
        cost=1.0 if encoder else 0.2,
        min_replicas=0,
        max_replicas=20,
        max_batch=8 if encoder else 32,
        pass_ms=ENCODE if encoder else DECODE,
        cold_start_s=10.0,
    )
    return replace(made, **changes)


def pools(*names: str, **changes: Any) -> dict[str, Pool]:
    return {name: pool(name, **changes) for name in names}


PLAIN = ScalingSettings(surge=1.0)
"""No spare replicas: what is needed alone."""

Course = Callable[[float], Mapping[str, Load]]


class Drive:
    """Calls the policy ten times a second; replicas are there as soon as they are asked for."""

    def __init__(self, the_pools: dict[str, Pool], knobs: ScalingSettings, **start: int) -> None:
        self.pools, self.knobs, self.state, self.now = the_pools, knobs, {}, 1e6
        self.replicas = {n: start.get(n.replace("-", "_"), 0) for n in the_pools}
        self.changes = 0
        self.reasons: dict[str, str] = {}

    def run(self, seconds: float, course: Course, *, cold: bool = False) -> dict[str, int]:
        """``course(seconds)`` gives loads; what runs and was asked for is filled in."""
        running = dict(self.replicas)
        for i in range(round(10 * seconds)):
            loads = {}
            for name, load in course(i / 10).items():
                runs = load.running if load.running is not None else running[name]
                loads[name] = replace(load, running=runs, target=self.replicas[name])
            plan = decide(self.pools, loads, self.state, self.knobs, self.now)
            self.state = json.loads(json.dumps(plan.state))
            self.reasons |= plan.reasons
            self.changes += sum(n != self.replicas[name] for name, n in plan.replicas.items())
            self.replicas = dict(plan.replicas)
            if not cold:
                running = dict(self.replicas)
            self.now += 0.1
        return self.replicas


def steady(**rates: float) -> Course:
    """Arrivals by pool, with the few requests under way that go with them."""
    return lambda t: {
        name.replace("_", "-"): Load(ongoing=rate / 20, arrivals_per_s=rate, oldest_s=0.0)
        for name, rate in rates.items()
    }


def test_a_sleeping_pool_wakes_at_the_first_request_and_its_encoder_with_it() -> None:
    drive = Drive(pools("fast-encoder", "fast-decoder"), PLAIN)
    asleep = Load(running=0, ongoing=0.0)
    assert drive.run(5, lambda t: {"fast-encoder": asleep, "fast-decoder": asleep}) == {
        "fast-encoder": 0,
        "fast-decoder": 0,
    }
    first = {"fast-encoder": asleep, "fast-decoder": Load(running=0, ongoing=1.0)}
    assert drive.run(0.1, lambda t: first) == {"fast-encoder": 1, "fast-decoder": 1}


def test_an_encoder_stays_asleep_while_every_image_is_known() -> None:
    drive = Drive(pools("fast-encoder", "fast-decoder"), PLAIN, fast_decoder=1)
    known = Load(running=1, ongoing=0.5, arrivals_per_s=10, hit_rate=1.0)
    course = {"fast-encoder": Load(running=0, ongoing=0.0), "fast-decoder": known}
    assert drive.run(20, lambda t: course)["fast-encoder"] == 0
    course["fast-decoder"] = replace(known, hit_rate=0.9)
    assert drive.run(1, lambda t: course)["fast-encoder"] == 1


def test_replicas_follow_arrivals_and_pass_times() -> None:
    """61.5 images a second and replica at best, 75 % of it in use: 300 need 6.5."""
    one = pools("fast-encoder")
    assert Drive(one, PLAIN, fast_encoder=1).run(20, steady(fast_encoder=300)) == {
        "fast-encoder": 7
    }
    slow = pools("fast-encoder", pass_ms={n: 2 * ms for n, ms in ENCODE.items()})
    assert Drive(slow, PLAIN, fast_encoder=1).run(20, steady(fast_encoder=300)) == {
        "fast-encoder": 13
    }


def test_a_goal_shorter_than_two_full_passes_counts_on_smaller_batches() -> None:
    strict = PLAIN.model_copy(update={"goal_ms": 150.0})
    loose = Drive(pools("fast-encoder"), PLAIN, fast_encoder=1)
    tight = Drive(pools("fast-encoder"), strict, fast_encoder=1)
    course = steady(fast_encoder=400)
    assert tight.run(20, course)["fast-encoder"] > loose.run(20, course)["fast-encoder"]


def test_queue_age_and_small_batches_ask_for_more() -> None:
    def waiting(age: float, fill: float) -> int:
        drive = Drive(pools("fast-encoder"), PLAIN, fast_encoder=3)
        load = Load(ongoing=80, arrivals_per_s=150, oldest_s=age, batch_fill=fill)
        return drive.run(5, lambda t: {"fast-encoder": load})["fast-encoder"]

    fresh, old, unfilled = waiting(0.1, 1.0), waiting(5.0, 1.0), waiting(5.0, 0.125)
    assert fresh < old < unfilled


def test_what_queues_at_handles_counts_although_replicas_do_not_see_it() -> None:
    """Replicas get through 50 a second; 200 more each second pile up before them."""
    drive = Drive(pools("fast-encoder"), PLAIN, fast_encoder=1)

    def piling(t: float) -> dict[str, Load]:
        return {"fast-encoder": Load(running=1, ongoing=20 + 200 * t, arrivals_per_s=50)}

    assert drive.run(12, piling)["fast-encoder"] >= 5


def test_requests_that_wait_for_the_encoder_do_not_scale_the_decoder() -> None:
    both = pools("fast-encoder", "fast-decoder")
    drive = Drive(both, PLAIN, fast_encoder=2, fast_decoder=1)
    course = {
        "fast-encoder": Load(ongoing=50_000, arrivals_per_s=120, oldest_s=3.0),
        "fast-decoder": Load(ongoing=50_005, arrivals_per_s=120, oldest_s=0.0, hit_rate=0.0),
    }
    found = drive.run(10, lambda t: course)
    assert found["fast-decoder"] == 1
    assert found["fast-encoder"] > 3


def test_the_hit_rate_tells_how_much_of_the_queue_comes_to_the_encoder() -> None:
    def encoders(hit_rate: float) -> int:
        both = pools("fast-encoder", "fast-decoder")
        drive = Drive(both, PLAIN, fast_encoder=1, fast_decoder=1)
        course = {
            "fast-encoder": Load(ongoing=10, arrivals_per_s=40),
            "fast-decoder": Load(ongoing=2000, arrivals_per_s=400, hit_rate=hit_rate),
        }
        return drive.run(3, lambda t: course)["fast-encoder"]

    assert encoders(0.2) > encoders(0.99)


def test_it_looks_ahead_by_the_cold_start() -> None:
    """Arrivals grow by 2 a second: in 60 s of cold start they are 120 more."""

    def growing(cold_start_s: float) -> int:
        drive = Drive(
            pools("fast-encoder", cold_start_s=cold_start_s, max_replicas=50), PLAIN, fast_encoder=5
        )
        return drive.run(
            60, lambda t: {"fast-encoder": Load(ongoing=5, arrivals_per_s=200 + 2 * t)}
        )["fast-encoder"]

    assert growing(60) >= growing(1) + 2


def test_capacity_that_starts_counts() -> None:
    drive = Drive(pools("fast-encoder"), PLAIN, fast_encoder=1)
    course = steady(fast_encoder=300)
    asked = drive.run(2, course, cold=True)["fast-encoder"]
    assert 6 <= asked <= 8
    assert drive.run(8, course, cold=True)["fast-encoder"] <= asked + 1


def test_up_at_once_and_down_only_after_the_hold() -> None:
    drive = Drive(pools("fast-encoder"), PLAIN, fast_encoder=2)
    assert drive.run(3, steady(fast_encoder=300))["fast-encoder"] >= 6
    high = drive.run(20, steady(fast_encoder=300))["fast-encoder"]
    assert drive.run(PLAIN.hold_s - 1, steady(fast_encoder=50))["fast-encoder"] == high
    assert drive.run(PLAIN.hold_s + 2, steady(fast_encoder=50))["fast-encoder"] == 2


@pytest.mark.slow
def test_small_ups_and_downs_change_nothing() -> None:
    drive = Drive(pools("fast-encoder"), PLAIN, fast_encoder=7)
    drive.run(2 * PLAIN.hold_s + 10, steady(fast_encoder=300))
    drive.changes = 0

    def wavering(t: float) -> dict[str, Load]:
        rate = 300 + 40 * (-1) ** int(t / 20)
        return {"fast-encoder": Load(ongoing=10, arrivals_per_s=rate)}

    drive.run(1500, wavering)
    assert drive.changes == 0


def test_it_does_not_matter_how_often_it_is_called() -> None:
    def after(step: float) -> dict[str, int]:
        state: Any = {}
        replicas = {"fast-encoder": 1}
        for i in range(round(30 / step)):
            load = Load(replicas["fast-encoder"], replicas["fast-encoder"], 10, 0.0, 250)
            plan = decide(pools("fast-encoder"), {"fast-encoder": load}, state, PLAIN, i * step)
            state, replicas = plan.state, dict(plan.replicas)
        return replicas

    assert after(0.1) == after(1.0)


def test_minimum_and_maximum_hold() -> None:
    bounded = pools("fast-encoder", min_replicas=2, max_replicas=4)
    assert Drive(bounded, PLAIN).run(700, steady(fast_encoder=0))["fast-encoder"] == 2
    assert Drive(bounded, PLAIN).run(5, steady(fast_encoder=5000))["fast-encoder"] == 4


def test_a_pool_nobody_asks_goes_to_sleep_and_so_does_its_encoder() -> None:
    both = pools("fast-encoder", "fast-decoder")
    drive = Drive(both, PLAIN, fast_encoder=2, fast_decoder=1)
    idle = {name: Load(ongoing=0, arrivals_per_s=0) for name in both}
    assert drive.run(2 * PLAIN.hold_s + 60, lambda t: idle) == {
        "fast-encoder": 0,
        "fast-decoder": 0,
    }


def test_a_surge_is_met_by_spare_replicas_within_the_reserve() -> None:
    knobs = ScalingSettings(budget=20, surge=2.0, reserve=0.8)
    drive = Drive(pools("fast-encoder"), knobs, fast_encoder=7)
    assert drive.run(5, steady(fast_encoder=300))["fast-encoder"] == 13
    drive = Drive(pools("fast-encoder"), knobs.model_copy(update={"reserve": 0.5}), fast_encoder=7)
    assert drive.run(5, steady(fast_encoder=300))["fast-encoder"] == 10


TWO = ("fast-encoder", "accurate-encoder")


def slow_and_fast() -> dict[str, Pool]:
    slow = pool("accurate-encoder", pass_ms={1: 250.0, 4: 850.0}, max_batch=4)
    return {"fast-encoder": pool("fast-encoder"), "accurate-encoder": slow}


def test_the_budget_bounds_all_together() -> None:
    knobs = ScalingSettings(budget=6)
    drive = Drive(slow_and_fast(), knobs, fast_encoder=2, accurate_encoder=2)
    found = drive.run(60, steady(fast_encoder=400, accurate_encoder=40))
    assert sum(found.values()) == 6
    assert found["accurate-encoder"] >= 1, "nobody who is asked is left without any"


def test_a_short_budget_goes_where_it_keeps_most_within_their_goal() -> None:
    knobs = ScalingSettings(budget=8, surge=1.0)
    drive = Drive(slow_and_fast(), knobs, fast_encoder=2, accurate_encoder=6)
    found = drive.run(90, steady(fast_encoder=300, accurate_encoder=40))
    assert found == {"fast-encoder": 7, "accurate-encoder": 1}


def test_idle_replicas_of_the_other_variant_give_way_without_the_hold() -> None:
    knobs = ScalingSettings(budget=8, surge=1.0, hold_s=10_000)
    drive = Drive(slow_and_fast(), knobs, fast_encoder=7, accurate_encoder=1)
    drive.run(60, steady(fast_encoder=300, accurate_encoder=1))
    drive.run(70, steady(fast_encoder=30, accurate_encoder=18))
    assert drive.replicas["accurate-encoder"] >= 6


def test_a_waiting_request_gets_a_first_replica_of_a_full_budget() -> None:
    knobs = ScalingSettings(budget=4, surge=1.0)
    drive = Drive(slow_and_fast(), knobs, fast_encoder=4)
    asleep = {"accurate-encoder": Load(running=0, ongoing=0.0)}
    busy = {"fast-encoder": Load(ongoing=200, arrivals_per_s=240)}
    assert drive.run(5, lambda t: busy | asleep)["accurate-encoder"] == 0
    wakes = {"accurate-encoder": Load(running=0, ongoing=1.0)}
    assert drive.run(0.1, lambda t: busy | wakes) == {"fast-encoder": 3, "accurate-encoder": 1}


def test_minima_win_over_the_budget() -> None:
    drive = Drive(pools("fast-encoder", min_replicas=5), ScalingSettings(budget=2))
    assert drive.run(1, steady(fast_encoder=10))["fast-encoder"] == 5


def test_missing_figures_keep_one_pool_and_let_the_others_follow() -> None:
    drive = Drive(slow_and_fast(), PLAIN, fast_encoder=3, accurate_encoder=3)

    drive.run(1, steady(fast_encoder=100, accurate_encoder=9))
    found = drive.run(5, steady(fast_encoder=300))
    assert found["accurate-encoder"] == 3
    assert found["fast-encoder"] >= 6


def test_reasons_are_given_for_what_changes_alone() -> None:
    drive = Drive(slow_and_fast(), PLAIN, fast_encoder=1, accurate_encoder=1)
    drive.run(5, steady(fast_encoder=300, accurate_encoder=0.5))
    assert drive.reasons.keys() == {"fast-encoder"}
    assert "items/s" in drive.reasons["fast-encoder"]


def test_the_work_grows_far_less_than_with_the_square_of_the_pools() -> None:
    def work(count: int) -> int:
        many = {
            f"v{i}-{role}": pool(f"v{i}-{role}")
            for i in range(count)
            for role in ("encoder", "decoder")
        }
        loads = {name: Load(1, 1, 5, 0.0, 20.0) for name in many}
        return instructions(lambda: decide(many, loads, {}, ScalingSettings(budget=10), 1.0))

    assert work(400) < 30 * work(40)


def instructions(call: Callable[[], object]) -> int:
    """How many bytecode instructions a call takes."""
    count = 0

    def trace(frame: FrameType, event: str, _: object) -> Any:
        nonlocal count
        frame.f_trace_opcodes = True
        count += event == "opcode"
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        call()
    finally:
        sys.settrace(before)
    return count
