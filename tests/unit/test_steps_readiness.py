"""Ready: loaded, and still there; busy is not gone."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from serve_app.core.errors import Overloaded, ReplicaLost
from serve_app.flow.readiness import Readiness, ReadinessCheck

from ..clocks import Clock, VirtualTime


class Asked:
    """A part that answers, or fails, as it is told; None: never."""

    def __init__(self, answer: bool | Exception | None = True) -> None:
        self.answer = answer
        self.times = 0
        self.running = True

    async def __call__(self) -> bool:
        self.times += 1
        if self.answer is None:
            await asyncio.Event().wait()
        if isinstance(self.answer, Exception):
            raise self.answer
        return bool(self.answer)

    @property
    def check(self) -> ReadinessCheck:
        return ReadinessCheck(self, lambda: self.running)


@pytest.fixture
def clock(virtual_time: VirtualTime) -> Clock:
    """Of what is remembered; who never answers is waited for on the event loop's."""
    return Clock()


async def asked_anew(ready: Callable[[], Awaitable[bool]], clock: Clock) -> bool:
    clock.now += 10
    return await ready()


async def test_nothing_to_wait_for_is_ready() -> None:
    assert await Readiness([])()


@pytest.mark.parametrize("bad", [False, RuntimeError("no"), ReplicaLost("gone"), None])
async def test_not_ready_while_a_part_has_not_loaded(
    clock: Clock, bad: bool | Exception | None
) -> None:
    part = Asked(bad)
    ready = Readiness([Asked().check, part.check], clock)
    assert not await ready()
    part.answer = True
    assert await asked_anew(ready, clock)


async def test_a_part_that_is_too_busy_to_answer_stays_ready(clock: Clock) -> None:
    part = Asked()
    ready = Readiness([part.check], clock)
    assert await ready()
    for busy in (None, Overloaded("full")):
        part.answer = busy
        assert await asked_anew(ready, clock)


async def test_a_part_that_is_full_from_the_start_is_there(clock: Clock) -> None:
    assert await Readiness([Asked(Overloaded("full")).check], clock)()


@pytest.mark.parametrize("answer", [True, None, Overloaded("full")])
async def test_a_part_without_replicas_is_not_ready(
    clock: Clock, answer: bool | Exception | None
) -> None:
    part = Asked()
    ready = Readiness([part.check], clock)
    assert await ready()
    part.answer, part.running = answer, False
    assert not await asked_anew(ready, clock)


async def test_a_part_that_lost_a_replica_is_ready_while_another_runs(clock: Clock) -> None:
    part = Asked()
    ready = Readiness([part.check], clock)
    assert await ready()
    for answer in (ReplicaLost("gone"), None):
        part.answer = answer
        assert await asked_anew(ready, clock)
    part.running = False
    assert not await asked_anew(ready, clock)


async def test_all_who_ask_within_a_second_cost_one_question(clock: Clock) -> None:
    part = Asked()
    ready = Readiness([part.check], clock)
    assert all(await asyncio.gather(*(ready() for _ in range(50))))
    clock.now += 0.9
    assert await ready()
    assert part.times == 1
    clock.now += 0.2
    assert await ready()
    assert part.times == 2


async def test_one_who_leaves_does_not_take_the_answer_along(
    clock: Clock,
) -> None:
    gate = asyncio.Event()

    async def gated() -> bool:
        await gate.wait()
        return True

    ready = Readiness([ReadinessCheck(gated, lambda: True)], clock)
    one, two = (asyncio.create_task(ready()) for _ in range(2))
    await asyncio.sleep(0)
    one.cancel()
    await asyncio.sleep(0)
    gate.set()
    assert await two
