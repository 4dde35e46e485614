"""A replica's health is its engine's: busy is healthy, stuck is not."""

from __future__ import annotations

import asyncio
import threading

import pytest

from serve_app.batching.engine_thread import EngineStuck, EngineThread
from serve_app.core.settings import Replicas
from serve_app.deployments.engines import EngineReplica

from ..clocks import Clock


class Replica(EngineReplica):
    def __init__(self, max_pass_s: float) -> None:
        super().__init__(Replicas(max_pass_s=max_pass_s))
        self.engine = EngineThread()
        self.threads = [self.engine]


@pytest.fixture
def way() -> threading.Event:
    return threading.Event()


async def test_an_idle_engine_is_asked_to_do_something(monkeypatch: pytest.MonkeyPatch) -> None:
    replica, asked = Replica(60), []
    run = replica.engine.run
    monkeypatch.setattr(replica.engine, "run", lambda *a: (asked.append(a), run(*a))[1])
    await replica.check_health()
    assert len(asked) == 1


async def test_a_busy_engine_is_healthy_however_much_waits(way: threading.Event) -> None:
    replica, began = Replica(600), threading.Event()

    def wait() -> bool:
        began.set()
        return way.wait(60)

    work = [asyncio.create_task(replica.engine.run(wait)) for _ in range(5)]
    await asyncio.to_thread(began.wait, 60)
    async with asyncio.timeout(60):
        await replica.check_health()
    way.set()
    assert await asyncio.gather(*work) == [True] * 5


async def test_an_engine_that_does_not_come_back_is_unhealthy(
    way: threading.Event, clock: Clock
) -> None:
    replica = Replica(600)
    began = threading.Event()

    def hang() -> bool:
        began.set()
        return way.wait(60)

    work = asyncio.create_task(replica.engine.run(hang))
    await asyncio.to_thread(began.wait, 60)
    clock.now += 600
    await replica.check_health()
    clock.now += 1
    with pytest.raises(EngineStuck):
        await replica.check_health()
    way.set()
    await work
    await replica.check_health()


async def test_work_that_fails_leaves_nothing_behind(clock: Clock) -> None:
    replica = Replica(1)
    with pytest.raises(ZeroDivisionError):
        await replica.engine.run(lambda: 1 // 0)
    clock.now += 100
    await replica.check_health()


class OnGpu(EngineReplica):
    def __init__(self) -> None:
        super().__init__(Replicas())
        self.engine = EngineThread()
        self.threads, self.devices = [self.engine], {"cuda", "cpu"}


class Gpu:
    """In place of `serve_app.engines.devices.touch`."""

    def __init__(self) -> None:
        self.touched: list[str] = []
        self.works = True

    def touch(self, device: str) -> None:
        self.touched.append(device)
        if not self.works:
            raise RuntimeError("CUDA error: device-side assert triggered")


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Gpu:
    made = Gpu()
    monkeypatch.setattr("serve_app.engines.devices.touch", made.touch)
    return made


async def test_a_gpu_that_refuses_everything_makes_its_replica_ill(gpu: Gpu) -> None:
    replica = OnGpu()
    await replica.check_health()
    assert gpu.touched == ["cuda"]
    gpu.works = False
    with pytest.raises(RuntimeError, match="CUDA"):
        await replica.check_health()


async def test_it_is_ill_under_load_too(gpu: Gpu, way: threading.Event) -> None:
    """Each pass fails, and the next one has begun when its health is asked for."""
    replica = OnGpu()
    gpu.works = False
    with pytest.raises(ZeroDivisionError):
        await replica.engine.run(lambda: 1 // 0)
    began = threading.Event()
    work = asyncio.create_task(replica.engine.run(lambda: began.set() or way.wait(60)))
    await asyncio.to_thread(began.wait, 60)
    with pytest.raises(RuntimeError, match="CUDA"):
        await replica.check_health()
    way.set()
    await work


async def test_a_busy_engine_whose_passes_end_well_is_not_probed(
    gpu: Gpu, way: threading.Event
) -> None:
    replica = OnGpu()
    await replica.engine.run(int)
    began = threading.Event()
    work = asyncio.create_task(replica.engine.run(lambda: began.set() or way.wait(60)))
    await asyncio.to_thread(began.wait, 60)
    await replica.check_health()
    assert gpu.touched == []
    way.set()
    await work
