"""Load moves from *fast* to *accurate* on real Ray processes, and replicas follow.

Fake models take a fixed time, so that two cores are enough; see `scaling_graph`.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from math import inf

import pytest

from . import scaling_graph
from .conftest import READY_TIMEOUT_S, Served
from .load import Phase, Record, Sample, drive
from .ray_cluster import wait_until
from .replica_logs import logs

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.weights,  # the cluster serves the local configuration, too
    pytest.mark.usefixtures("driver"),
]

SLOT = 0.05
SLOTS = 6
SCALING = {"budget": SLOTS * SLOT, "goal_ms": 2e3, "hold_s": 60.0}
RATE = 8.0  # one encoder embeds five images a second
PATIENCE_S = 180.0
"""For each half of the load, which ends once replicas have followed it."""
HALVES = ("fast-encoder", "fast-decoder", "accurate-encoder", "accurate-decoder")


@dataclass(frozen=True)
class Ran:
    """What was recorded of the application, and of one whose replicas talk nonsense."""

    moved: Record
    garbage: Record

    @property
    def shift(self) -> float:
        """When the load moved."""
        return self.moved.began[1]


def followed(record: Record) -> bool:
    """One encoder of *fast* is not enough, and what is asked for has not changed lately."""
    latest = [sample.target for sample in record.samples[-10:]]
    return len(record.samples) > 20 and latest[0]["fast-encoder"] >= 2 and latest[0] == latest[-1]


def moved(record: Record) -> bool:
    """Replicas of *accurate* run instead, and the whole budget was needed for it."""
    return (
        record.samples[-1].running["accurate-encoder"] >= 2
        and record.samples[-1].target["fast-encoder"] < most(record, "fast-encoder")
        and max(map(total, record.samples)) >= SLOTS
    )


def most(record: Record, name: str) -> int:
    return max(sample.target[name] for sample in record.samples)


def total(sample: Sample) -> int:
    return sum(sample.target[name] for name in HALVES)


@pytest.fixture(scope="module")
def ran(served: Served, driver: None) -> Iterator[Ran]:
    settings = scaling_graph.graph(SCALING, scaling_graph.QUICK, SLOT)
    more = [
        scaling_graph.application("fakes", settings, policy=True),
        scaling_graph.application("garbage", settings, policy=True, garbage=True),
    ]
    cluster = served.cluster
    cluster.deploy({**served.config, "applications": [*served.config["applications"], *more]})
    wait_until(
        lambda: (
            {cluster.applications().get(n, {}).get("status") for n in ("fakes", "garbage")}
            == {"RUNNING"}
        ),
        "the fakes run",
        READY_TIMEOUT_S,
    )
    over = threading.Event()
    garbage: list[Record] = []
    steady = [Phase(3 * PATIENCE_S, {"fast": 1.0}, lambda _: over.is_set())]
    beside = threading.Thread(target=lambda: garbage.append(drive(cluster, "garbage", steady)))
    beside.start()
    try:
        record = drive(
            cluster,
            "fakes",
            [
                Phase(PATIENCE_S, {"fast": RATE}, followed),
                Phase(PATIENCE_S, {"accurate": RATE}, moved),
            ],
            grace_s=PATIENCE_S,
        )
    finally:
        over.set()
        beside.join()
    yield Ran(record, garbage[0])
    cluster.deploy(served.config)
    wait_until(
        lambda: set(cluster.applications()) == {"sam"}, "the others are gone", READY_TIMEOUT_S
    )


def test_the_policy_has_the_profiles_that_the_ingress_reports(ran: Ran, served: Served) -> None:
    text = "".join(path.read_text() for path in logs(served).glob("controller_*.log"))
    assert "measured profiles: fast" in text


def targets(record: Record, name: str, since: float = 0.0, until: float = inf) -> list[int]:
    return [sample.target[name] for sample in record.samples if since <= sample.at < until]


def test_replicas_follow_the_load_from_one_variant_to_the_other(ran: Ran) -> None:
    before = [s for s in ran.moved.samples if s.at < ran.shift][-1]
    assert before.target["fast-encoder"] >= 2
    assert before.target["accurate-encoder"] == 0
    assert any(moved(replace(ran.moved, samples=ran.moved.samples[:n])) for n in counted(ran.moved))


def counted(record: Record) -> range:
    """How many samples there were at each moment."""
    return range(1, len(record.samples) + 1)


def test_the_budget_holds_but_for_the_moment_of_waking(ran: Ran) -> None:
    """Ray itself wakes a deployment at its first request; the policy then takes one elsewhere."""
    totals = [total(sample) for sample in ran.moved.samples]
    assert SLOTS <= max(totals) <= SLOTS + 1  # it was short: there would be eight
    over = [count > SLOTS for count in totals]
    assert sum(now and not before for before, now in pairwise([False, *over])) <= 2
    assert not over[-1]


def test_the_first_request_wakes_what_sleeps(ran: Ran) -> None:
    for name in ("accurate-encoder", "accurate-decoder"):
        assert set(targets(ran.moved, name, until=ran.shift)) == {0}
        assert ran.moved.samples[-1].target[name] >= 1
    first = next(outcome for outcome in ran.moved.requests if outcome.kind == "accurate")
    assert first.ok  # it waited, and was not rejected


def test_whoever_has_nothing_to_do_is_not_started_again_and_no_request_is_lost(ran: Ran) -> None:
    """How fast it goes, `make bench-reaction` tells."""
    assert all(outcome.ok for outcome in ran.moved.requests)
    done_s = max(outcome.done_s for outcome in ran.moved.requests if outcome.kind == "fast")
    for name in HALVES:
        if name.startswith("fast"):
            seen = targets(ran.moved, name, max(ran.shift, done_s - ran.moved.started))
            assert seen == sorted(seen, reverse=True), name
        else:
            awake = [count > 0 for count in targets(ran.moved, name)]
            assert awake == sorted(awake), name


def test_replicas_that_talk_nonsense_keep_serving(ran: Ran, served: Served) -> None:
    assert ran.garbage.requests
    assert all(outcome.ok for outcome in ran.garbage.requests)
    for sample in ran.garbage.samples:
        assert 1 <= sample.target["fast-encoder"] <= 3
    # Nothing crashed or hung because of them: the local application is still there as well.
    told = served.cluster.applications()
    assert {a["status"] for a in told.values()} == {"RUNNING"}
