"""The affinity router on Ray's router class, over replicas that are only names and queues."""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import dataclass
from typing import Any

import pytest
from ray.serve import Deployment
from ray.serve._private.common import (
    DeploymentHandleSource,
    DeploymentID,
    ReplicaID,
    RequestMetadata,
)
from ray.serve.request_router import PendingRequest

from graphs.nodes import proposals_node, variant_node
from serve_app.core.settings import GraphSettings, VariantSettings
from serve_app.deployments.compat.affinity import AffinityRouter
from serve_app.profiles.plan import resolve
from serve_app.routing.affinity import ranked

NAMES = ["a", "b", "c", "d"]


@dataclass(eq=False)
class Replica:
    """What the router looks at of Ray's."""

    replica_id: ReplicaID
    ongoing: int = 0
    max_ongoing_requests: int = 8

    async def get_queue_len(self, *, deadline_s: float) -> int:
        return self.ongoing


DEPLOYMENT = DeploymentID(name="decoder", app_name="sam")


def replicas(*names: str) -> list[Replica]:
    return [Replica(ReplicaID(name, DEPLOYMENT)) for name in names]


async def router(of: list[Replica]) -> AffinityRouter:
    made = AffinityRouter(
        deployment_id=DEPLOYMENT,
        handle_source=DeploymentHandleSource.REPLICA,
        use_replica_queue_len_cache=True,
        initial_backoff_s=0.0,
        max_backoff_s=0.0,
    )
    made.initialize_state(hot_at=4)
    made.update_replicas(of)  # type: ignore[arg-type]
    await settle()  # newcomers are asked for their queues, beside what else goes on
    return made


async def settle() -> None:
    for _ in range(50):
        await asyncio.sleep(0)


def request(image: str = "") -> PendingRequest:
    # All calls that one request makes carry its internal id.
    metadata = RequestMetadata(request_id="r", internal_request_id="i", session_id=image)
    return PendingRequest(args=[], kwargs={}, metadata=metadata)


async def send(to: AffinityRouter, image: str, ongoing: bool = True) -> Any:
    """A request is routed, and is under way from then on."""
    chosen: Any = await to._choose_replica_for_request(request(image))
    to.on_send_request(chosen.replica_id)
    chosen.ongoing += ongoing
    return chosen


async def test_an_image_has_one_home_until_that_is_hot() -> None:
    of = await router(replicas(*NAMES))
    home, second, *_ = ranked("image", NAMES)
    sent = [(await send(of, "image")).replica_id.unique_id for _ in range(6)]
    assert sent == [home] * 4 + [second] * 2


async def test_without_a_session_the_idlest_is_asked() -> None:
    of = await router(replicas(*NAMES))
    sent = Counter([(await send(of, "")).replica_id.unique_id for _ in range(8)])
    assert sent == dict.fromkeys(NAMES, 2)


async def test_calls_of_one_request_are_routed_all() -> None:
    of = await router(replicas("a", "b", "c"))
    chosen = await asyncio.wait_for(asyncio.gather(*(send(of, f"{i}") for i in range(24))), 10)
    assert len(chosen) == 24


async def test_who_finds_all_full_waits_for_a_place_in_order_of_arrival() -> None:
    (only,) = full = replicas("only")
    only.ongoing = only.max_ongoing_requests
    of = await router(full)
    done: list[int] = []

    async def wait(number: int) -> None:
        await send(of, "image")
        done.append(number)

    waiting = [asyncio.create_task(wait(i)) for i in range(3)]
    await settle()
    assert done == []
    waiting[1].cancel()
    for expected in ([0], [0, 2]):
        only.ongoing -= 1
        await asyncio.wait_for(asyncio.wait({waiting[expected[-1]]}), 10)
        assert done == expected


async def test_whoever_comes_later_does_not_push_in() -> None:
    (only,) = full = replicas("only")
    only.ongoing = only.max_ongoing_requests
    of = await router(full)
    tried_again = asyncio.Event()

    async def backoff(attempt: int) -> None:
        await tried_again.wait()

    of._backoff = backoff  # type: ignore[method-assign]
    first = asyncio.create_task(send(of, "image"))
    await settle()
    only.ongoing -= 1
    later = asyncio.create_task(send(of, "image"))
    await settle()
    assert not later.done()
    tried_again.set()
    await asyncio.wait_for(first, 10)
    assert not later.done()
    later.cancel()


async def test_without_replicas_calls_wait_until_there_are_some() -> None:
    of = await router([])
    waiting = [asyncio.create_task(send(of, str(i))) for i in range(3)]
    await settle()
    assert not any(task.done() for task in waiting)
    of.update_replicas(replicas("a"))  # type: ignore[arg-type]
    assert len(await asyncio.wait_for(asyncio.gather(*waiting), 10)) == 3


async def test_a_dead_replica_is_not_asked_again() -> None:
    of = await router(replicas(*NAMES))
    home = await send(of, "image")
    of.on_replica_actor_died(home.replica_id)
    assert (await send(of, "image")).replica_id.unique_id == ranked("image", NAMES)[1]


@pytest.mark.parametrize("layout", ["split", "fused"])
def test_decoders_are_deployed_with_it_and_others_are_not(layout: str) -> None:
    variant = VariantSettings.model_validate({"model": "vit_t", "layout": layout})
    plan = resolve(GraphSettings(variants={"fast": variant}))
    decoder = variant_node(plan, "fast")._bound_deployment
    others = [proposals_node(plan)._bound_deployment]
    if layout == "split":
        others.append(decoder.init_args[3]._bound_deployment)

    def routers(deployment: Deployment) -> type:
        found: type = deployment._deployment_config.request_router_config.get_request_router_class()
        return found

    assert routers(decoder).__name__ == AffinityRouter.__name__
    assert AffinityRouter.__name__ not in {routers(other).__name__ for other in others}
