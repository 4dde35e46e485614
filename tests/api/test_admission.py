"""A full service says so at once, and keeps nothing of what it refuses."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

import httpx
import pytest
from pydantic import ValidationError

from serve_app.connectors.article import article_router
from serve_app.core.errors import Overloaded
from serve_app.core.limits import Limits
from serve_app.core.settings import GraphSettings
from serve_app.http.app import create_app
from serve_app.http.gate import GateMiddleware, ThroughputEstimator
from serve_app.http.request_info import RequestInfo

from .asgi import Clock, Exchange, fine


class Gate:
    """An app whose requests end when they are told to."""

    def __init__(self) -> None:
        self.entered = 0
        self.arrivals = asyncio.Semaphore(0)
        self.open = asyncio.Event()
        self.failure: BaseException | None = None

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.entered += 1
        await receive()
        self.arrivals.release()
        await self.open.wait()
        if self.failure is not None:
            raise self.failure
        await fine(scope, receive, send)


@pytest.fixture
def gate() -> Gate:
    return Gate()


async def fill(admission: GateMiddleware, gate: Gate, count: int) -> list[asyncio.Task[Exchange]]:
    tasks = [asyncio.create_task(Exchange().run(admission)) for _ in range(count)]
    for _ in tasks:
        await asyncio.wait_for(gate.arrivals.acquire(), 60)
    return tasks


async def test_who_comes_too_many_is_refused_unread(gate, figures):
    admission = GateMiddleware(gate, limits=Limits(max_concurrent_requests=2))
    tasks = await fill(admission, gate, 2)
    refused = await Exchange(info=RequestInfo(), headers={"content-length": "5000000"}).run(
        admission
    )
    assert refused.status == 503
    assert refused.error["code"] == refused.info.error_code == "overloaded"
    assert 1 <= int(refused.answered["retry-after"]) <= 30
    assert refused.answered["connection"] == "close"
    assert (refused.read, gate.entered) == (0, 2)
    assert figures.refused("capacity") == 1
    # A short body is read over sooner than a connection is made anew.
    short = await Exchange(headers={"content-length": "300"}).run(admission)
    assert "connection" not in short.answered
    unknown = await Exchange(headers={"transfer-encoding": "chunked"}).run(admission)
    assert unknown.answered["connection"] == "close"
    gate.open.set()
    assert [(await task).status for task in tasks] == [200, 200]
    assert (await Exchange().run(admission)).status == 200


async def test_what_only_reads_always_passes(gate):
    admission = GateMiddleware(gate, limits=Limits(max_concurrent_requests=1))
    (task,) = await fill(admission, gate, 1)
    probes = [asyncio.create_task(Exchange(method="GET").run(admission)) for _ in range(5)]
    for _ in probes:
        await asyncio.wait_for(gate.arrivals.acquire(), 60)
    gate.open.set()
    assert [(await probe).status for probe in (task, *probes)] == [200] * 6


PIECE = {"type": "http.request", "body": b"x", "more_body": True}


async def test_a_body_on_its_way_takes_no_place(gate):
    limits = Limits(max_concurrent_requests=1, max_arriving_requests=2)
    admission = GateMiddleware(body_of(gate), limits=limits)
    slow = [asyncio.create_task(Exchange(incoming=[PIECE]).run(admission)) for _ in range(2)]
    await asyncio.sleep(0)
    # Who sends slowly keeps others of that kind out, and nobody who has sent: they come and go.
    refused = await Exchange(incoming=[PIECE]).run(admission)
    assert (refused.status, refused.read) == (503, 0)
    for task in slow:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
    (working,) = await fill(admission, gate, 1)
    gate.open.set()
    assert (await working).status == 200


async def test_whose_body_has_arrived_when_all_places_are_taken_is_refused(gate):
    limits = Limits(max_concurrent_requests=1, max_arriving_requests=2)
    admission = GateMiddleware(body_of(gate), limits=limits)
    late = Exchange(incoming=[PIECE, {"type": "http.request"}])
    come = asyncio.Event()
    late_task = asyncio.create_task(late.run(_after(admission, come)))
    await asyncio.sleep(0)
    (working,) = await fill(admission, gate, 1)
    come.set()
    with pytest.raises(Overloaded):
        await late_task
    gate.open.set()
    assert (await working).status == 200
    # Nothing of it is left behind.
    assert (await Exchange().run(admission)).status == 200


def body_of(app: Any) -> Any:
    """An app that reads the whole body before it does anything."""

    async def reads(scope: Any, receive: Any, send: Any) -> None:
        while (await receive()).get("more_body"):
            pass
        await app(scope, _nothing, send)

    return reads


async def _nothing() -> dict[str, Any]:
    return {"type": "http.request"}


def _after(app: Any, come: asyncio.Event) -> Any:
    """The second piece of a body comes when it is told to."""

    async def waits(scope: Any, receive: Any, send: Any) -> None:
        first = True

        async def slowly() -> Any:
            nonlocal first
            if not first:
                await come.wait()
            first = False
            return await receive()

        await app(scope, slowly, send)

    return waits


@pytest.mark.parametrize("end", ["fault", "cancelled"])
async def test_a_place_is_free_again_however_a_request_ends(gate, end):
    admission = GateMiddleware(gate, limits=Limits(max_concurrent_requests=1))
    (task,) = await fill(admission, gate, 1)
    if end == "fault":
        gate.failure = RuntimeError()
        gate.open.set()
    else:
        task.cancel()
    with contextlib.suppress(RuntimeError, asyncio.CancelledError):
        await task
    gate.failure = None
    gate.open.set()
    assert (await Exchange().run(admission)).status == 200


def test_the_wait_is_what_the_present_work_takes_at_the_present_pace():
    pace = ThroughputEstimator()
    pace.start(100.0)
    for second in range(1, 9):  # two end each second
        pace.complete(100.0 + second)
        pace.complete(100.0 + second)
    assert pace.retry_after_s(20, 108.0) == 10
    assert pace.retry_after_s(1, 108.0) == 1
    assert pace.retry_after_s(1000, 108.0) == 30
    # None ends any more: it takes longer and longer.
    assert pace.retry_after_s(20, 112.0) > 10
    assert pace.retry_after_s(20, 160.0) == 30


def test_a_pause_is_not_taken_for_slowness():
    pace = ThroughputEstimator()
    pace.start(0.0)
    pace.complete(1.0)
    pace.start(5000.0)
    for i in range(1, 11):
        pace.complete(5000.0 + i * 0.1)
    assert pace.retry_after_s(50, 5001.0) == 5
    # Many more than are remembered: still the present pace.
    for i in range(1, 2001):
        pace.complete(5001.0 + i * 0.01)
    assert pace.retry_after_s(500, 5021.0) == 5


def test_of_a_service_that_has_just_filled_nothing_is_known():
    pace = ThroughputEstimator()
    pace.start(0.0)
    assert pace.retry_after_s(64, 0.0) == 1
    assert pace.retry_after_s(64, 4.5) == 5


def test_where_only_bodies_are_on_their_way_the_wait_is_short():
    assert ThroughputEstimator().retry_after_s(0, 5_000.0) == 1


async def test_the_refusal_tells_the_wait_by_the_clock(gate):
    clock = Clock()
    admission = GateMiddleware(gate, limits=Limits(max_concurrent_requests=1), clock=clock)
    (task,) = await fill(admission, gate, 1)
    clock.now += 7
    assert (await Exchange().run(admission)).answered["retry-after"] == "7"
    task.cancel()


@pytest.mark.parametrize(
    ("path", "kind"),
    [("/v1/segment", "application/json"), ("/segment", "multipart/form-data; boundary=x")],
)
async def test_a_refusal_on_arrival_tells_the_same_wait(service, path, kind):
    limits, clock = Limits(max_concurrent_requests=1), Clock()
    app = create_app(service, limits, metrics=None, version="1", connectors=[article_router])
    admission = GateMiddleware(app, limits=limits, clock=clock)
    entered, come = asyncio.Event(), asyncio.Event()

    async def wait(request: Any) -> None:
        entered.set()
        await asyncio.Event().wait()

    service.hook = wait
    incoming = [{**PIECE, "body": b"--x"}, {"type": "http.request"}]
    late = Exchange(path=path, headers={"content-type": kind}, incoming=incoming)
    late_task = asyncio.create_task(late.run(_after(admission, come)))
    await asyncio.sleep(0)
    whole = {"type": "http.request", "body": b'{"image_id": "a", "text": "dog"}'}
    working = Exchange(headers={"content-type": "application/json"}, incoming=[whole])
    working_task = asyncio.create_task(working.run(admission))
    await entered.wait()
    clock.now += 7
    come.set()
    refused = await late_task
    assert (refused.status, refused.error["code"]) == (503, "overloaded")
    assert refused.answered["retry-after"] == "7"
    working_task.cancel()


async def test_the_interface_holds_its_own_bound(service):
    limits = Limits(max_concurrent_requests=2)
    app = create_app(service, limits, metrics=None, version="1", connectors=[article_router])
    entered, go = asyncio.Semaphore(0), asyncio.Event()

    async def wait(request: Any) -> None:
        entered.release()
        await go.wait()

    service.hook = wait
    body = {"image_id": "a", "text": "dog"}
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://sam") as client:
        tasks = [asyncio.create_task(client.post("/v1/segment", json=body)) for _ in range(2)]
        for _ in tasks:
            await entered.acquire()
        for path in ("/v1/segment", "/v1/embed", "/v1/segment/batch", "/segment"):
            refused = await client.post(path, json=body)
            assert (refused.status_code, refused.json()["error"]["code"]) == (503, "overloaded")
        for path in ("/healthz", "/readyz", "/health", "/v1/models", "/docs"):
            assert (await client.get(path)).status_code == 200
        go.set()
        assert [(await task).status_code for task in tasks] == [200, 200]
        assert (await client.post("/v1/segment", json=body)).status_code == 200


def test_serves_own_bound_is_above_ours():
    with pytest.raises(ValidationError, match="max_concurrent_requests"):
        GraphSettings.model_validate({"ingress": {"max_ongoing_requests": 208}})
    GraphSettings.model_validate({"ingress": {"max_ongoing_requests": 209}})
    assert Limits().most_requests == 208
