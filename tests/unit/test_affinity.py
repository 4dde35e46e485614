"""Affinity: how replicas are ranked."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from serve_app.core.settings import Batching, DecoderSettings
from serve_app.deployments.compat.affinity import affinity
from serve_app.routing.affinity import preferred, ranked

NAMES = ["a", "b", "c", "d"]
KEYS = [f"image {i}" for i in range(400)]


def test_each_replica_is_the_home_of_its_share() -> None:
    shares = Counter(ranked(key, NAMES)[0] for key in KEYS)
    assert set(shares) == set(NAMES)
    assert all(60 < share < 140 for share in shares.values())


def test_the_order_of_the_replicas_does_not_matter() -> None:
    assert all(ranked(key, NAMES) == ranked(key, NAMES[::-1]) for key in KEYS)


def test_only_images_of_whoever_goes_move() -> None:
    for key in KEYS:
        order = ranked(key, NAMES)
        for gone in NAMES:
            assert ranked(key, set(NAMES) - {gone}) == [name for name in order if name != gone]


def test_a_hot_home_is_the_last_to_be_asked() -> None:
    key = "image"
    home, *others = ranked(key, NAMES)
    idle = dict.fromkeys(NAMES, 0)
    assert preferred(key, idle | {home: 3}, hot_at=4, full_at=8) == [home, *others]
    assert preferred(key, idle | {home: 4}, hot_at=4, full_at=8) == [*others, home]


def test_home_is_not_hot_where_all_have_much() -> None:
    key = "image"
    order = ranked(key, NAMES)
    busy = dict.fromkeys(NAMES, 100)
    assert preferred(key, busy | {order[0]: 110}, hot_at=4, full_at=200) == order
    assert preferred(key, busy | {order[0]: 160}, hot_at=4, full_at=200) != order


def test_whoever_takes_no_more_is_asked_last() -> None:
    key = "image"
    order = ranked(key, NAMES)
    queues = dict.fromkeys(NAMES, 7) | {order[0]: 8}
    assert preferred(key, queues, hot_at=4, full_at=8) == [*order[1:], order[0]]


@given(st.lists(st.integers(0, 50), min_size=1, max_size=8), st.integers(1, 40), st.text())
def test_somebody_is_always_cool(lengths: list[int], hot_at: int, key: str) -> None:
    queues = {str(i): length for i, length in enumerate(lengths)}
    order = preferred(key, queues, hot_at=hot_at, full_at=100)
    assert sorted(order) == sorted(queues)
    assert queues[order[0]] < max(hot_at, 1.25 * (sum(lengths) + 1) / len(lengths))


def test_the_bound_is_a_full_pass_that_a_replica_takes() -> None:
    def hot_at(batch: int, ongoing: int) -> int:
        settings = DecoderSettings(
            batching=Batching(max_batch_size=batch), max_ongoing_requests=ongoing
        )
        return int(affinity(settings).request_router_kwargs["hot_at"])

    assert (hot_at(32, 256), hot_at(32, 16)) == (32, 16)
    assert affinity(DecoderSettings()).get_request_router_class() is not None
