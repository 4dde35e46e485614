"""What is survived, end to end over HTTP, in little: `tests.chaos` has the long form.

The stand-in application (`tests.faults.standins`) beside the local one: two replicas of each role,
the ingress too, and a real Redis between them.  Models are sleeps; all else is the product's.
"""

from __future__ import annotations

import asyncio
import copy
import random
from collections.abc import Iterator

import pytest

from ..chaos.cancellation import (
    PHASES,
    decoder_begins,
    done,
    judge,
    leave,
    leaver,
    make_known,
    minus,
    until_empty,
)
from ..chaos.changes import changed, refused
from ..chaos.kills import CHILDREN, TIMES, ask_until_answered, killing, strays, under_load
from ..chaos.load import Client, Outcome
from ..chaos.questions import Mix, new_image
from ..chaos.report import Report
from ..chaos.service import Service, wait_until_ready
from ..faults.redis_server import RedisServer
from ..faults.standins import application, graph
from .conftest import READY_TIMEOUT_S, Served
from .ray_cluster import wait_until

pytestmark = [pytest.mark.cluster, pytest.mark.weights]

RATE = 8.0
APP = "faults"


@pytest.fixture(scope="module")
def service(served: Served, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with RedisServer(tmp_path_factory.mktemp("redis")) as redis:
        args = graph(ingresses=2, standins=TIMES, cache={"redis_url": redis.url})
        apps = [*served.config["applications"], application(APP, args)]
        config = {**served.config, "applications": apps}
        found = Service(served.cluster, config, f"{served.url}/{APP}", APP)
        found.redeploy(config)
        wait_until_ready(found.url)
        wait_until(lambda: found.status() == "RUNNING", "all replicas run", READY_TIMEOUT_S)
        yield found
        served.cluster.deploy(served.config)
        wait_until(lambda: set(served.cluster.applications()) == {"sam"}, "it is gone", 60.0)


@pytest.mark.usefixtures("driver")
async def test_who_leaves_takes_the_work_along(service: Service) -> None:
    rng = random.Random(1)
    async with Client(service.url) as client:
        await make_known(client)
    await until_empty(service, 30.0)
    before = await asyncio.to_thread(done, service)
    async with Client(service.url) as client:
        begun = await decoder_begins(service)
        ones = [leaver(phase, rng, TIMES["encode_ms"] / 1e3) for phase in PHASES]
        leavers = [asyncio.create_task(leave(service.url, one, begun)) for one in ones]
        mates = [asyncio.create_task(client.ask(new_image())) for _ in range(4)]
        amiss = await asyncio.gather(*leavers)
        await asyncio.gather(*mates)
    assert client.ledger.statuses() == {200: 4}, client.ledger.table()
    assert await until_empty(service, 30.0) < 30.0
    after = await asyncio.to_thread(done, service)
    report = Report()
    judge(report, minus(after, before), 1, [one for one in amiss if one])
    assert not report.broken


async def test_killed_child_replicas_cost_nothing(service: Service) -> None:
    async with Client(service.url) as client:
        work = asyncio.create_task(killing(service, CHILDREN, len(CHILDREN), together=True))
        kills = await under_load(client, Mix(), RATE, work)
    assert {one.role for one in kills} == set(CHILDREN)
    assert set(client.ledger.statuses()) == {200}, client.ledger.table()
    assert client.ledger.unanswered == 0
    assert client.ledger.contradictions() == 0


async def test_a_killed_ingress_costs_what_it_had_and_a_retry_answers_the_same(
    service: Service,
) -> None:
    mix = Mix()
    asks = [mix() for _ in range(24)]
    async with Client(service.url) as client:
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

    async with Client(service.url) as client:
        work = asyncio.create_task(asyncio.to_thread(change))
        assert await under_load(client, Mix(), RATE, work)
    assert all(before[role].isdisjoint(pids) for role, pids in service.roles().items())
    assert set(client.ledger.statuses()) == {200}, client.ledger.table()
    assert client.ledger.unanswered == 0
    assert client.ledger.contradictions() == 0
