"""What is survived, end to end over HTTP, in little: `tests.chaos` has the long form.

The application of fakes (`tests.fakes.graph`) beside the local one: two replicas of each role,
the ingress too, and a real Redis between them.  Models are sleeps; all else is the product's.
"""

from __future__ import annotations

import asyncio
import copy
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from serve_tools.bench.load import Outcome

from ..chaos.cancellation import PHASES, after_a_line, canceller, make_known, send
from ..chaos.changes import changed, refused
from ..chaos.client import Client
from ..chaos.kills import CHILDREN, TIMES, ask_until_answered, killing, strays, under_calls
from ..chaos.questions import Mix, new_image
from ..chaos.service import Service, wait_until_ready
from ..fakes.graph import application, graph
from ..faults.redis_server import RedisServer
from .conftest import READY_TIMEOUT_S, Served
from .ray_cluster import wait_until

pytestmark = [pytest.mark.cluster, pytest.mark.weights]

CALLERS = 6
APP = "faults"
PATIENCE_S = 120.0


@pytest.fixture(scope="module")
def gate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of files that hold up passes of the fakes."""
    return tmp_path_factory.mktemp("gate")


@pytest.fixture(scope="module")
def service(
    served: Served, gate: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Service]:
    with RedisServer(tmp_path_factory.mktemp("redis")) as redis:
        args = graph(
            ingresses=2, fakes={**TIMES, "gate": str(gate)}, cache={"redis_url": redis.url}
        )
        apps = [*served.config["applications"], application(APP, args)]
        config = {**served.config, "applications": apps}
        found = Service(served.cluster, config, f"{served.url}/{APP}", APP)
        found.redeploy(config)
        wait_until_ready(found.url)
        wait_until(lambda: found.status() == "RUNNING", "all replicas run", READY_TIMEOUT_S)
        yield found
        served.cluster.deploy(served.config)
        wait_until(
            lambda: set(served.cluster.applications()) == {"sam"}, "it is gone", READY_TIMEOUT_S
        )


@dataclass(frozen=True)
class Leaving:
    """When a client leaves: once a role has begun, or after the first line of the answer.

    Attributes:
        gate: the file that holds up the role's passes; see `tests.fakes.engines.hold`.
        let_through: items of each replica before.
        most: images embedded and prompts decoded at most, all the same: what was in a pass.
    """

    gate: str | None
    most: dict[str, int]
    let_through: int = 0


# Two replicas of each role; two images in an encoder's pass, 32 prompts in a decoder's.
LEAVING = {
    "upload": Leaving(None, {"fast-encoder": 0, "fast-decoder": 0}),
    "embedding": Leaving("encode", {"fast-encoder": 1, "fast-decoder": 0}),
    "waiting": Leaving("encode", {"fast-encoder": 4, "fast-decoder": 0}),
    "decoding": Leaving("decode", {"fast-encoder": 0, "fast-decoder": 64}),
    "streaming": Leaving("encode", {"fast-encoder": 8, "fast-decoder": 8}, let_through=2),
}


@pytest.mark.usefixtures("driver")
@pytest.mark.parametrize("phase", PHASES)
async def test_who_leaves_takes_the_work_along(service: Service, gate: Path, phase: str) -> None:
    """Only what is in a pass when the client leaves is done; whoever comes then is served."""
    leaving, size = LEAVING[phase], PHASES[phase].size
    bar = gate / f"{leaving.gate} {size[0]}x{size[1]}"
    async with Client(service.url, timeout_s=PATIENCE_S) as client:
        if phase == "decoding":
            await make_known(client)
        await until(lambda: not service.busy(), "nothing is under way")
        before = await asyncio.to_thread(service.done, size)
        if leaving.gate:
            bar.write_text(str(leaving.let_through))
        try:
            one = replace(canceller(phase, random.Random(1), 0.0), after_s=0.0)
            reader, writer = await send(service.url, one)
            if one.lines:
                assert await after_a_line(reader, one) == ""
            elif leaving.gate:
                role = f"fast-{leaving.gate}r"
                await until(lambda: service.begun(size)[role] > before[role], f"{role} has begun")
            writer.transport.abort()
            await until(lambda: not any(service.ongoing().values()), "nobody waits for anything")
            mates = [asyncio.create_task(client.ask(new_image())) for _ in range(4)]
            await until(
                lambda: any(service.ongoing().values()) or any(mate.done() for mate in mates),
                "others have come",
            )
        finally:
            bar.unlink(missing_ok=True)
        await asyncio.gather(*mates)
        assert set(client.ledger.statuses()) == {200}, client.ledger.table()
    await until(lambda: not service.busy(), "all is done")
    done = await asyncio.to_thread(service.done, size) - before
    assert all(done[role] <= most for role, most in leaving.most.items()), done


@pytest.mark.usefixtures("driver")
async def test_the_deadline_header_ends_the_work(service: Service, gate: Path) -> None:
    """While the encoder is at the image; what would come after that is left undone."""
    size = (104, 78)
    bar = gate / "encode 104x78"
    bar.touch()
    try:
        ask = replace(new_image(size), headers={"x-request-timeout-seconds": "4"})
        async with Client(service.url, timeout_s=PATIENCE_S) as client:
            outcome = await client.ask(ask)
        # Just before Serve itself would end it, if this machine is in time.
        assert outcome.status in (504, 408)
        assert outcome.code == "deadline_exceeded" or outcome.status == 408
        await until(lambda: not any(service.ongoing().values()), "nobody waits for anything")
    finally:
        bar.unlink()
    await until(lambda: not service.busy(), "all is done")
    done = await asyncio.to_thread(service.done, size)
    assert done["fast-encoder"] <= 1
    assert done["fast-decoder"] == 0


async def until(met: Callable[[], bool], what: str) -> None:
    await asyncio.to_thread(wait_until, met, what, PATIENCE_S)


async def test_killed_child_replicas_cost_nothing(service: Service) -> None:
    async with Client(service.url, timeout_s=PATIENCE_S) as client:
        work = asyncio.create_task(killing(service, CHILDREN, len(CHILDREN), together=True))
        kills = await under_calls(client, Mix(), CALLERS, work)
    assert {one.role for one in kills} == set(CHILDREN)
    assert set(client.ledger.statuses()) == {200}, client.ledger.table()
    assert client.ledger.unanswered == 0
    assert client.ledger.contradictions() == 0


async def test_a_killed_ingress_costs_what_it_had_and_a_retry_answers_the_same(
    service: Service,
) -> None:
    mix = Mix()
    asks = [mix() for _ in range(24)]
    async with Client(service.url, timeout_s=PATIENCE_S) as client:
        calm = [await client.ask(ask) for ask in asks]
        work = asyncio.create_task(killing(service, ["ingress"], 1, ledger=client.ledger))
        # Asked again and again until the replica is back; each of them ends in an answer.
        again: list[Outcome] = []
        while not work.done() or not again:
            again += await asyncio.gather(*(ask_until_answered(client, ask) for ask in asks[:8]))
        kills = await work
    assert {one.status for one in calm + again} == {200}, client.ledger.table()
    # It costs what was under way when it died, and nothing else.
    outcomes = client.ledger.all()
    assert any(kill.within(one) for kill in kills for one in outcomes)
    assert strays(outcomes, kills) == [], client.ledger.table()
    assert client.ledger.unanswered == 0
    assert client.ledger.contradictions() == 0


async def test_changes_of_the_configuration_cost_nothing(service: Service) -> None:
    """A wrong one is refused whole; a good one gives each role new replicas, one by one."""
    config = copy.deepcopy(service.config)
    service.app_of(config)["args"]["limits"] = {"max_prompts": 512}
    before = service.roles()

    def change() -> bool:
        whole = refused(service, lambda app: app["args"].update(colour="blue"))
        changed(service, config)
        return whole

    async with Client(service.url, timeout_s=PATIENCE_S) as client:
        work = asyncio.create_task(asyncio.to_thread(change))
        assert await under_calls(client, Mix(), CALLERS, work)
    assert all(before[role].isdisjoint(pids) for role, pids in service.roles().items())
    assert set(client.ledger.statuses()) == {200}, client.ledger.table()
    assert client.ledger.unanswered == 0
    assert client.ledger.contradictions() == 0
