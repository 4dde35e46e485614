"""The time a request has left, as those see it who work for it."""

from __future__ import annotations

import asyncio
import math
import time

import pytest

from serve_app.core.deadline import deadline, time_left_s, time_limit, until


def test_unless_told_otherwise_there_is_no_bound() -> None:
    assert until() == math.inf
    assert time_left_s() is None


def test_the_sooner_of_two_deadlines_holds_and_both_end() -> None:
    now = time.monotonic()
    with deadline(now + 10):
        with deadline(now + 20):
            assert until() == now + 10
        with deadline(now - 1):
            left = time_left_s()
            assert left is not None
            assert left < 0
        assert until() == now + 10
    assert until() == math.inf


async def test_a_time_limit_is_seen_inside_and_by_what_is_started_there() -> None:
    async with time_limit(100):
        left = await asyncio.create_task(asyncio.to_thread(time_left_s))
        assert left is not None
        assert 90 < left <= 100
    assert until() == math.inf
    async with time_limit(None):
        assert until() == math.inf


async def test_it_ends_what_takes_longer() -> None:
    with pytest.raises(TimeoutError):
        async with time_limit(0) as limit:
            await asyncio.sleep(60)
    assert limit.expired()
    assert until() == math.inf
