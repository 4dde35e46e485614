"""Concurrent calls for one key: one computation, whoever leaves."""

from __future__ import annotations

import asyncio
import gc
from contextvars import ContextVar

import pytest

from serve_app.core.single_flight import SingleFlight

_REQUEST: ContextVar[str] = ContextVar("request", default="none")


class Work:
    """A computation that ends when the test says so."""

    def __init__(self) -> None:
        self.calls = 0
        self.cancelled = 0
        self.started = asyncio.Event()
        self.outcome: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self.may_end = asyncio.Event()
        self.may_end.set()

    async def __call__(self) -> str:
        self.calls += 1
        self.started.set()
        try:
            return await asyncio.shield(self.outcome)
        except asyncio.CancelledError:
            self.cancelled += 1
            await self.may_end.wait()
            raise


async def _waiting(
    flight: SingleFlight[str], work: Work, count: int, key: str = "k"
) -> list[asyncio.Task[str]]:
    """Callers of one key, all of them waiting, in order."""
    callers = [asyncio.create_task(flight.run(key, work)) for _ in range(count)]
    await work.started.wait()
    for _ in range(3):
        await asyncio.sleep(0)
    return callers


async def test_twenty_callers_share_one_computation() -> None:
    flight, work = SingleFlight[str](), Work()
    callers = await _waiting(flight, work, 20)
    work.outcome.set_result("done")
    assert await asyncio.gather(*callers) == ["done"] * 20
    assert work.calls == 1


async def test_other_keys_are_computed_apart() -> None:
    flight, first, second = SingleFlight[str](), Work(), Work()
    one = await _waiting(flight, first, 1, "one")
    two = await _waiting(flight, second, 1, "two")
    second.outcome.set_result("2")
    assert await two[0] == "2"
    assert not one[0].done()
    first.outcome.set_result("1")
    assert await one[0] == "1"


@pytest.mark.parametrize("leaver", [0, 1, 2], ids=["leader", "follower", "last"])
async def test_a_cancelled_caller_leaves_the_others_unharmed(leaver: int) -> None:
    flight, work = SingleFlight[str](), Work()
    callers = await _waiting(flight, work, 3)
    callers[leaver].cancel()
    with pytest.raises(asyncio.CancelledError):
        await callers[leaver]
    late = asyncio.create_task(flight.run("k", work))
    await asyncio.sleep(0)
    work.outcome.set_result("done")
    rest = [caller for i, caller in enumerate(callers) if i != leaver]
    assert await asyncio.gather(*rest, late) == ["done"] * 3
    assert (work.calls, work.cancelled) == (1, 0)


async def test_the_computation_ends_with_its_last_caller() -> None:
    flight, work = SingleFlight[str](), Work()
    callers = await _waiting(flight, work, 2)
    work.may_end.clear()  # it takes its time to stop
    callers[0].cancel()
    await asyncio.wait(callers[:1])
    assert work.cancelled == 0
    callers[1].cancel()
    await asyncio.wait(callers[1:])
    # A caller that comes now starts anew instead of joining what is being cancelled.
    again = Work()
    again.outcome.set_result("anew")
    async with asyncio.timeout(60):
        assert await flight.run("k", again) == "anew"
    assert (work.cancelled, again.calls) == (1, 1)
    work.may_end.set()


async def test_an_error_reaches_all_callers_and_is_not_kept() -> None:
    flight, work = SingleFlight[str](), Work()
    callers = await _waiting(flight, work, 5)
    work.outcome.set_exception(ValueError("broken"))
    outcomes = await asyncio.gather(*callers, return_exceptions=True)
    assert [type(o) for o in outcomes] == [ValueError] * 5
    assert work.calls == 1
    again = Work()
    again.outcome.set_result("mended")
    assert await flight.run("k", again) == "mended"


async def test_an_outcome_is_not_kept_either() -> None:
    """Keeping is the cache's affair."""
    flight = SingleFlight[str]()
    for expected in ("first", "second"):
        work = Work()
        work.outcome.set_result(expected)
        assert await flight.run("k", work) == expected


async def test_the_computation_runs_in_no_callers_context() -> None:
    """Ray Serve finds a request's remote calls by context, to cancel them with the request."""
    seen = []

    async def work() -> str:
        seen.append(_REQUEST.get())
        return ""

    _REQUEST.set("the first caller's")
    await SingleFlight[str]().run("k", work)
    assert seen == ["none"]


async def test_an_error_that_nobody_awaits_is_not_reported_to_the_loop() -> None:
    reported: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: reported.append(context))
    flight = SingleFlight[str]()
    started = asyncio.Event()

    async def fails_when_cancelled() -> str:
        started.set()
        try:
            await asyncio.Event().wait()
        finally:
            raise ValueError("while being cancelled")

    caller = asyncio.create_task(flight.run("k", fails_when_cancelled))
    await started.wait()
    caller.cancel()
    await asyncio.wait([caller])
    del caller  # its traceback keeps the computation
    for _ in range(5):
        await asyncio.sleep(0)
    gc.collect()
    assert reported == []
