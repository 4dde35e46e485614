"""The circuit breaker: when it opens, who may probe, and when it closes."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from serve_app.cache.breaker import Breaker


def _opened(retry_s: float = 2.0) -> Breaker:
    breaker = Breaker(3, retry_s)
    assert [breaker.failed(10.0) for _ in range(3)] == [False, False, True]
    return breaker


def test_it_opens_with_the_third_failure_in_a_row() -> None:
    breaker = Breaker(3, 2.0)
    for _ in range(5):
        assert not breaker.failed(0.0)
        assert not breaker.failed(0.0)
        breaker.succeeded()
    assert not breaker.is_open
    assert not breaker.failed(0.0)
    assert not breaker.failed(0.0)
    assert breaker.failed(0.0)
    assert breaker.is_open


def test_one_probe_at_a_time_and_only_after_the_rest() -> None:
    breaker = _opened()
    assert breaker.seconds_until_probe(10.5) == 1.5
    assert not breaker.try_probe(11.9)
    assert breaker.try_probe(12.0)
    assert not breaker.try_probe(12.0)
    assert not breaker.try_probe(99.0)
    assert breaker.is_open


def test_a_failed_probe_begins_another_rest() -> None:
    breaker = _opened()
    assert breaker.try_probe(12.0)
    breaker.probed(False, 12.5)
    assert breaker.is_open
    assert breaker.seconds_until_probe(12.5) == 2.0
    assert not breaker.try_probe(14.4)
    assert breaker.try_probe(14.5)


def test_an_answered_probe_closes_it_and_forgets_the_failures() -> None:
    breaker = _opened()
    assert breaker.try_probe(12.0)
    breaker.probed(True, 12.0)
    assert not breaker.is_open
    assert breaker.seconds_until_probe(12.0) == 0.0
    assert not breaker.try_probe(99.0)
    assert [breaker.failed(13.0) for _ in range(3)] == [False, False, True]


def test_what_began_before_it_opened_changes_nothing() -> None:
    breaker = _opened()
    breaker.succeeded()
    assert breaker.is_open
    assert not breaker.failed(11.0)
    assert breaker.seconds_until_probe(11.0) == 1.0


@given(st.lists(st.sampled_from(["ok", "fail", "probe", "answered", "silent"]), max_size=60))
def test_it_is_open_between_its_opening_and_an_answered_probe(events: list[str]) -> None:
    breaker, opened, in_a_row, probing = Breaker(3, 1.0), False, 0, False
    for now, event in enumerate(events):
        if event == "ok":
            breaker.succeeded()
            in_a_row = 0
        elif event == "fail":
            in_a_row += 1
            told = breaker.failed(now)
            assert told == (not opened and in_a_row >= 3)
            opened = opened or told
            in_a_row = 0 if told else in_a_row
        elif event == "probe":
            allowed = breaker.try_probe(now)
            assert not allowed or (opened and not probing)
            probing = probing or allowed
        elif probing:
            breaker.probed(event == "answered", now)
            probing = False
            opened = opened and event != "answered"
            in_a_row = 0
        assert breaker.is_open == opened
