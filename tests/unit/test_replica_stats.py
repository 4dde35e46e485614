"""What replicas tell the scaling policy: rates, shares and means that forget."""

from __future__ import annotations

import math

import pytest

from serve_app.batching.stats import BatchStats, EwmaCounter, HitRate


def test_a_steady_rate_is_found_and_forgotten() -> None:
    rate = EwmaCounter(2.0)
    for i in range(400):
        rate.add(1.0, i * 0.05)
    assert rate.per_s(20.0) == pytest.approx(20.0, rel=0.03)
    assert rate.per_s(22.0) == pytest.approx(20.0 / math.e, rel=0.03)
    assert rate.per_s(1e9) == 0.0


def test_a_clock_that_steps_back_breaks_nothing() -> None:
    rate = EwmaCounter(2.0)
    rate.add(1.0, 100.0)
    rate.add(1.0, 50.0)
    assert rate.at(100.0) == pytest.approx(2.0)


def test_passes_tell_fill_and_time() -> None:
    stats = BatchStats(max_batch=8)
    now = 0.0
    assert "pass_ms" not in stats.report(now)  # unknown is not zero
    for _ in range(50):
        for _ in range(4):
            stats.arrived(now)
        now += 0.3
        stats.ended(4, 0.3, now)
        now += 0.1
    told = stats.report(now)
    assert told["arrivals_per_s"] == pytest.approx(10.0, rel=0.25)
    assert told["batch_fill"] == pytest.approx(0.5)
    assert (told["pass_items"], told["pass_ms"]) == pytest.approx((4.0, 300.0))
    quiet = stats.report(now + 3600.0)
    assert (quiet["batch_fill"], quiet["arrivals_per_s"]) == (0.0, 0.0)
    assert quiet["pass_ms"] == pytest.approx(300.0)  # what it can do is not forgotten


def test_the_hit_rate_is_of_the_last_lookups() -> None:
    hits = HitRate()
    assert "hit_rate" not in hits.report(0.0)
    for i in range(20):
        hits.observe(i % 4 == 0, 1.0)
    assert hits.report(1.0)["hit_rate"] == pytest.approx(0.25)
    for i in range(100):
        hits.observe(True, 20.0 + i)
    assert hits.report(120.0)["hit_rate"] > 0.95
    assert "hit_rate" not in hits.report(1e6)
