"""Load moves from *fast* to *accurate* on real Ray processes, and replicas follow.

Stand-in models take a fixed time, so that two cores are enough; see `standins`.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from . import standins
from .conftest import Served
from .load import Phase, Record, drive
from .ray_cluster import wait_until

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.weights,  # the cluster serves the local configuration, too
    pytest.mark.usefixtures("driver"),
]

SLOT = 0.05
SLOTS = 6
GOAL_S = 2.0
SCALING = {"budget": SLOTS * SLOT, "goal_ms": GOAL_S * 1e3, "hold_s": 60.0}
RATE = 8.0  # one encoder embeds five images a second
SHIFT_S, END_S = 15.0, 50.0
HALVES = ("fast-encoder", "fast-decoder", "accurate-encoder", "accurate-decoder")


@dataclass(frozen=True)
class Ran:
    """What was recorded of the application, and of one whose replicas talk nonsense."""

    moved: Record
    garbage: Record


@pytest.fixture(scope="module")
def ran(served: Served, driver: None) -> Iterator[Ran]:
    settings = standins.graph(SCALING, standins.QUICK, SLOT)
    more = [
        standins.application("standins", settings, policy=True),
        standins.application("garbage", settings, policy=True, garbage=True),
    ]
    cluster = served.cluster
    cluster.deploy({**served.config, "applications": [*served.config["applications"], *more]})
    wait_until(
        lambda: (
            {cluster.applications().get(n, {}).get("status") for n in ("standins", "garbage")}
            == {"RUNNING"}
        ),
        "the stand-ins run",
        120.0,
    )
    garbage: list[Record] = []
    steady = [Phase(END_S - 5.0, {"fast": 1.0})]
    beside = threading.Thread(target=lambda: garbage.append(drive(cluster, "garbage", steady)))
    beside.start()
    moved = drive(
        cluster,
        "standins",
        [Phase(SHIFT_S, {"fast": RATE}), Phase(END_S - SHIFT_S, {"accurate": RATE})],
    )
    beside.join()
    yield Ran(moved, garbage[0])
    cluster.deploy(served.config)
    wait_until(lambda: set(cluster.applications()) == {"sam"}, "the others are gone", 60.0)


def targets(record: Record, name: str, since: float = 0.0) -> list[int]:
    return [sample.target[name] for sample in record.samples if sample.at >= since]


def test_replicas_follow_the_load_from_one_variant_to_the_other(ran: Ran) -> None:
    before = [s for s in ran.moved.samples if s.at < SHIFT_S][-1]
    after = ran.moved.samples[-1]
    assert before.target["fast-encoder"] >= 2
    assert before.target["accurate-encoder"] == 0
    assert after.running["accurate-encoder"] >= 2
    assert after.target["fast-encoder"] < before.target["fast-encoder"]


def test_the_budget_holds_at_every_moment(ran: Ran) -> None:
    totals = [sum(s.target[name] for name in HALVES) for s in ran.moved.samples]
    # Ray itself wakes a deployment at its first request; the policy then takes one elsewhere.
    over = [total for total in totals if total > SLOTS]
    assert max(totals) <= SLOTS + 1
    assert len(over) <= 2
    assert max(totals) == SLOTS  # and it was short: there would be eight


def test_the_first_request_wakes_what_sleeps(ran: Ran) -> None:
    assert set(targets(ran.moved, "accurate-decoder")[: int(SHIFT_S)]) == {0}
    woken = [
        s.at - SHIFT_S
        for s in ran.moved.samples
        if s.target["accurate-encoder"] and s.target["accurate-decoder"]
    ]
    assert woken[0] < 5.0
    asked = sorted(r for r in ran.moved.requests if r[1] == "accurate")
    assert asked[0][2] is not None  # it was waited for, not refused


def test_it_settles(ran: Ran) -> None:
    since = ran.moved.last_change(SHIFT_S)
    assert since is not None
    assert since < 25.0
    # Nobody is stopped who is started again: one direction for each.
    for name in HALVES:
        seen = targets(ran.moved, name, SHIFT_S + 0.5)
        up = name.startswith("accurate")
        assert seen == sorted(seen, reverse=not up), name
    assert all(took is not None for _, _, took in ran.moved.requests)
    late = ran.moved.p50_s("accurate", END_S - 8.0, END_S)
    early = ran.moved.p50_s("accurate", SHIFT_S, SHIFT_S + 3.0)
    assert late is not None
    assert early is not None
    assert late < GOAL_S < early


def test_replicas_that_talk_nonsense_keep_serving(ran: Ran, served: Served) -> None:
    assert len(ran.garbage.requests) >= END_S - 6
    assert all(took is not None for _, _, took in ran.garbage.requests)
    for sample in ran.garbage.samples:
        assert 1 <= sample.target["fast-encoder"] <= 3
    # Nothing crashed or hung because of them: the local application is still there as well.
    told = served.cluster.applications()
    assert {a["status"] for a in told.values()} == {"RUNNING"}
