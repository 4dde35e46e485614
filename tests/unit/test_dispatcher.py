"""The router at work: ledger, load and hints together, and variants that are woken."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

import pytest

from serve_app.core.errors import HintsUnmet, Overloaded, UnknownVariant
from serve_app.core.measurements import Additive, Escalation, Measurements, Point, Profile
from serve_app.core.settings import RouterSettings
from serve_app.routing.dispatcher import Dispatcher
from serve_app.routing.load_tracker import Capacity
from serve_app.routing.types import RoutingQuery

FAST = Profile({1: 90.0}, {1: 10.0}, {"box": 0.8}, cold_start_s=3)
ACCURATE = Profile({1: 980.0}, {1: 20.0}, {"box": 0.9})
FLAT = Additive(intercept=0.1)
RULE = Escalation(
    gain=FLAT,
    first=FLAT,
    second=FLAT,
    curve=(Point(threshold=0, share=1, gain=0.1),),
    single=(Point(threshold=0, share=1, gain=0.1),),
    first_iou=0.8,
    second_iou=0.9,
)


class Starter:
    """Counts how often it is asked, and answers when it is let."""

    def __init__(self) -> None:
        self.asked = 0
        self.failure: Exception | None = None
        self.running = asyncio.Event()

    async def __call__(self) -> None:
        self.asked += 1
        await self.running.wait()
        if self.failure is not None:
            raise self.failure


def dispatcher(
    fast: Capacity | None = None,
    starters: dict[str, Callable[[], Awaitable[None]]] | None = None,
    measurements: Measurements | None = None,
) -> Dispatcher:
    capacities = {"fast": fast or Capacity(), "accurate": Capacity()}
    measured = Measurements(
        {"fast": FAST, "accurate": ACCURATE}, {"fast>accurate": {"box-1": RULE}}
    )
    return Dispatcher(RouterSettings(), capacities, measurements or measured, starters or {})


def test_it_chooses_by_ledger_and_load_of_the_moment() -> None:
    of = dispatcher()
    assert of.choose(RoutingQuery(max_latency_ms=500), "image").variant == "fast"
    ticket = of.load_tracker.acquire("accurate", "image", 1, 0.0)
    of.load_tracker.forget("accurate", "image")
    assert of.variant_state("accurate", "image").images == 1
    assert of.expected_ms("fast", "image", 2) == 110
    of.load_tracker.release(ticket, 0.0, None)
    assert of.choose(RoutingQuery(max_latency_ms=1500), "image").variant == "accurate"


def test_refusals_come_out_as_the_callers_errors() -> None:
    of = dispatcher()
    with pytest.raises(UnknownVariant):
        of.choose(RoutingQuery(variant="x"), "image")
    with pytest.raises(HintsUnmet) as caught:
        of.choose(RoutingQuery(max_latency_ms=1), "image")
    # The router's own exception holds nothing for a log.
    assert caught.value.__suppress_context__


async def test_a_refusal_wakes_who_could_answer_once_however_often_it_is_asked() -> None:
    starter = Starter()
    of = dispatcher(Capacity(encoders=0, decoders=0), {"fast": starter})
    for _ in range(3):
        with pytest.raises(Overloaded):
            of.choose(RoutingQuery(max_latency_ms=200), "image")
        await asyncio.sleep(0)
    assert starter.asked == 1
    starter.running.set()
    await asyncio.gather(*of._starting.values())
    # It has gone to sleep again: it is woken again.
    with pytest.raises(Overloaded):
        of.choose(RoutingQuery(max_latency_ms=200), "image")
    await asyncio.gather(*of._starting.values())
    assert starter.asked == 2


async def test_who_cannot_help_is_not_woken() -> None:
    of = dispatcher(Capacity(encoders=0, decoders=0))
    with pytest.raises(HintsUnmet):
        of.choose(RoutingQuery(max_latency_ms=50), "image")
    assert of._starting == {}


@pytest.mark.parametrize("failure", [Overloaded("no room"), RuntimeError("broken")])
async def test_a_variant_that_does_not_wake_is_logged_and_asked_again(
    failure: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    starter = Starter()
    starter.failure = failure
    starter.running.set()
    of = dispatcher(starters={"fast": starter})
    with caplog.at_level(logging.WARNING):
        of.scale_from_zero("fast")
        await asyncio.gather(*of._starting.values())
    assert "variant fast could not be scaled from zero" in caplog.text
    of.scale_from_zero("fast")
    await asyncio.gather(*of._starting.values())
    assert starter.asked == 2


def test_the_cascades_rules_are_those_of_the_pair_and_need_a_measured_second() -> None:
    of = dispatcher()
    assert of.escalation("fast", "accurate") == {"box-1": RULE}
    assert of.escalation("accurate", "fast") == {}
    unmeasured = Measurements({"fast": FAST}, {"fast>accurate": {"box-1": RULE}})
    assert dispatcher(measurements=unmeasured).escalation("fast", "accurate") == {}


async def test_a_better_variant_that_was_asleep_is_there_for_the_next() -> None:
    starter = Starter()
    of = dispatcher(starters={"accurate": starter})
    of.load_tracker.replicas("accurate", 0, 0)
    choice = of.choose(RoutingQuery(max_latency_ms=2000), "image")
    assert (choice.variant, choice.degraded) == ("fast", True)
    await asyncio.sleep(0)
    assert starter.asked == 1
    starter.running.set()
