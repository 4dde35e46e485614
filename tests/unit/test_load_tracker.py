"""What the ingress knows of the variants' load; time is handed in."""

from __future__ import annotations

import pytest

from serve_app.core.inference import Prediction, ReplicaLoad
from serve_app.core.measurements import Profile
from serve_app.core.types import CacheTier
from serve_app.routing.load_tracker import Capacity, LoadTracker

PROFILE = Profile({1: 90.0}, {1: 10.0}, embedding_bytes=100)
"""A prompt on a new image takes 100 ms, on a known one 10 ms."""


def load_tracker(
    capacity: Capacity | None = None, profile: Profile | None = PROFILE
) -> LoadTracker:
    profiles = {} if profile is None else {"fast": profile}
    capacities = {"fast": capacity or Capacity(decoder_batch=1), "other": Capacity()}
    return LoadTracker(capacities, profiles)


def answer(
    cache: CacheTier = CacheTier.MISS, load: ReplicaLoad | None = None, prompts: int = 1
) -> Prediction:
    return Prediction(masks=((),) * prompts, cache=cache, timings_ms={}, load=load)


def told(replica: str = "a", **load: float) -> Prediction:
    return answer(load=ReplicaLoad(replica=replica, **load))  # type: ignore[arg-type]


def request(
    of: LoadTracker, image: str, seconds: float, start: float, cache: CacheTier = CacheTier.MISS
) -> None:
    of.release(of.acquire("fast", image, 1, start), start + seconds, answer(cache))


def test_it_starts_as_it_is_deployed() -> None:
    of = load_tracker(Capacity(encoders=2, decoders=3, encoder_batch=4, decoder_batch=8))
    found = of.variant_states("image", 0.0)
    assert found.keys() == {"fast", "other"}
    fast = found["fast"]
    assert (fast.encoders, fast.decoders, fast.encoder_batch, fast.decoder_batch) == (2, 3, 4, 8)
    assert (fast.images, fast.prompts, fast.oldest_ms, fast.slowdown) == (0, 0, 0, 1)
    assert not fast.cached
    assert of.variant_state("fast", "image", 0.0) == fast


def test_requests_under_way_are_counted_until_they_end_in_any_way() -> None:
    of = load_tracker()
    first = of.acquire("fast", "one", 3, 0.0)
    second = of.acquire("fast", "one", 2, 0.0)
    third = of.acquire("fast", "two", 1, 0.0)
    now = of.variant_state("fast", "three", 0.0)
    # Two prompts on one image need its embedding once.
    assert (now.images, now.prompts) == (2, 6)
    assert of.variant_state("other", "three", 0.0).prompts == 0
    of.release(first, 0.1, answer())
    of.release(second, 0.1, None)
    assert of.variant_state("fast", "three", 0.1).prompts == 1
    of.release(third, 0.1, None)
    now = of.variant_state("fast", "x", 0.1)
    assert (now.images, now.prompts) == (0, 0)


def test_what_replicas_tell_counts_while_it_is_fresh() -> None:
    of = load_tracker()
    for replica in ("a", "b", "a"):  # the second word of a replaces its first
        ticket = of.acquire("fast", "one", 1, 10.0)
        of.release(ticket, 10.0, told(replica, images=2, prompts=30, oldest_ms=400.0))
    now = of.variant_state("fast", "two", 10.0)
    assert (now.images, now.prompts, now.oldest_ms) == (4, 60, 400)
    # It fades: queues drain, and an idle service must not seem busy.
    half = of.variant_state("fast", "two", 11.0)
    assert (half.images, half.prompts, half.oldest_ms) == (2, 30, 200)
    later = of.variant_state("fast", "two", 12.1)
    assert (later.images, later.prompts, later.oldest_ms) == (0, 0, 0)


def test_own_requests_and_told_ones_are_not_added_up() -> None:
    of = load_tracker()
    of.release(of.acquire("fast", "one", 1, 0.0), 0.0, told(images=1, prompts=5))
    of.acquire("fast", "two", 20, 0.1)
    now = of.variant_state("fast", "x", 0.2)
    assert (now.images, now.prompts) == (1, 20)


def test_replicas_that_are_gone_are_forgotten() -> None:
    of = load_tracker()
    for n in range(50):
        of.release(of.acquire("fast", "one", 1, n * 1.0), n * 1.0, told(f"replica {n}"))
    assert len(of._variants["fast"].reports) <= 3


def test_a_request_that_is_overdue_makes_all_wait() -> None:
    of = load_tracker()
    ticket = of.acquire("fast", "one", 1, 0.0)
    assert ticket.expected_ms == 100
    assert of.variant_state("fast", "two", 0.1).oldest_ms == 0
    assert of.variant_state("fast", "two", 2.1).oldest_ms == pytest.approx(2000)
    of.release(ticket, 2.1, None)
    assert of.variant_state("fast", "two", 2.1).oldest_ms == 0


def test_without_a_ledger_nothing_is_expected_and_nothing_learnt() -> None:
    of = load_tracker(profile=None)
    ticket = of.acquire("fast", "one", 1, 0.0)
    assert ticket.expected_ms is None
    assert of.variant_state("fast", "two", 50.0).oldest_ms == 0
    of.release(ticket, 50.0, answer())
    assert of.variant_state("fast", "one", 50.0).slowdown == 1
    assert of.variant_state("fast", "one", 50.0).cached


def test_an_answered_image_is_resident_and_the_oldest_goes_first() -> None:
    of = load_tracker(Capacity(embeddings=250))  # room for two
    for image in ("one", "two", "one", "three"):
        assert not of.variant_state("fast", "three", 0.0).cached
        request(of, image, 0.1, 0.0)
    cached = [i for i in ("one", "two", "three") if of.variant_state("fast", i, 0.0).cached]
    assert cached == ["one", "three"]
    assert not of.variant_state("other", "one", 0.0).cached
    of.forget("fast", "one")
    of.forget("fast", "never seen")
    assert not of.variant_state("fast", "one", 0.0).cached


def test_each_decoder_replica_has_a_cache() -> None:
    of = load_tracker(Capacity(embeddings=100, decoders=3, shared=True))
    for image in "abcd":
        request(of, image, 0.1, 0.0)
    assert [i for i in "abcd" if of.variant_state("fast", i, 0.0).cached] == ["b", "c", "d"]


@pytest.mark.parametrize("shared", [True, False])
def test_of_several_caches_that_of_the_images_home_is_asked(shared: bool) -> None:
    of = load_tracker(Capacity(decoders=3, shared=shared))
    request(of, "a", 0.1, 0.0)
    of.replicas("fast", 2, 3)
    assert of.variant_state("fast", "a", 0.0).cached
    # Some images have another home now; none is counted on until it has been answered again.
    of.replicas("fast", 2, 4)
    assert of.variant_state("fast", "a", 0.0).cached is shared
    request(of, "a", 0.1, 0.0)
    assert of.variant_state("fast", "a", 0.0).cached


def test_an_image_is_resident_only_once_it_has_been_answered() -> None:
    of = load_tracker()
    of.release(of.acquire("fast", "one", 1, 0.0), 0.1, None)
    assert not of.variant_state("fast", "one", 0.1).cached


def test_replica_counts_change_and_a_variant_that_sleeps_has_lost_its_embeddings() -> None:
    of = load_tracker(Capacity(encoder_batch=4))
    request(of, "one", 0.1, 0.0)
    of.replicas("fast", 0, 1)
    now = of.variant_state("fast", "one", 0.0)
    assert (now.encoders, now.decoders, now.encoder_batch, now.cached) == (0, 1, 4, True)
    assert not now.scaled_to_zero
    assert of.variant_state("fast", "two", 0.0).scaled_to_zero
    of.replicas("fast", 1, 0)
    assert of.variant_state("fast", "one", 0.0).scaled_to_zero
    of.replicas("fast", 1, 1)
    assert not of.variant_state("fast", "one", 0.0).cached


def test_a_slowdown_is_learnt_bounded_and_fades() -> None:
    of = load_tracker()
    start = 0.0
    for n in range(20):
        request(of, f"image {n}", 0.5, start)  # 500 ms where the ledger says 100
        start += 0.5
    learnt = of.variant_state("fast", "x", start).slowdown
    # Estimates made with what was learnt come true: it settles there.
    assert learnt == pytest.approx(5, rel=0.15)
    assert of.acquire("fast", "x", 1, start).expected_ms == pytest.approx(500, rel=0.15)
    assert of.variant_state("fast", "x", start + 30).slowdown == pytest.approx(
        learnt ** (1 / 2.718281828), rel=1e-3
    )
    assert of.variant_state("fast", "x", start + 1000).slowdown == pytest.approx(1)
    for n in range(40):
        request(of, f"stalled {n}", 1000, start)
    assert of.variant_state("fast", "x", start + 1000).slowdown == 8


def test_a_quicker_machine_is_learnt_too() -> None:
    of = load_tracker()
    for n in range(20):
        request(of, f"image {n}", 0.05, n * 0.1)
    assert of.variant_state("fast", "x", 2.0).slowdown == pytest.approx(0.5, rel=0.15)


def test_nothing_is_learnt_from_a_request_that_went_another_way_than_foreseen() -> None:
    of = load_tracker()
    # The replica had the image after all: this says nothing of the encoder's speed.
    request(of, "known elsewhere", 0.01, 0.0, CacheTier.REDIS)
    assert of.variant_state("fast", "x", 0.1).slowdown == 1
    # It had lost the image: nor does this.
    request(of, "known elsewhere", 0.1, 1.0, CacheTier.MISS)
    assert of.variant_state("fast", "x", 1.1).slowdown == 1
    # Cold starts differ from passes.
    of.replicas("fast", 0, 0)
    request(of, "cold", 1.0, 2.0)
    assert of.variant_state("fast", "x", 3.0).slowdown == 1
