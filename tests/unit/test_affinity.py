"""Affinity: the ranking alone, and the router over replicas that are only names and queues."""

from __future__ import annotations

import asyncio
import inspect
from collections import Counter
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ray.serve import Deployment
from ray.serve._private.common import (
    DeploymentHandleSource,
    DeploymentID,
    ReplicaID,
    RequestMetadata,
)
from ray.serve.request_router import PendingRequest, RequestRouter

from graphs.nodes import proposals_node, variant_node
from serve_app.deployments.affinity import AffinityRouter, affinity
from serve_app.domain.settings import (
    Batching,
    DecoderSettings,
    GraphSettings,
    VariantSettings,
)
from serve_app.routing.affinity import preferred, ranked

NAMES = ["a", "b", "c", "d"]
KEYS = [f"image {i}" for i in range(400)]


def test_each_replica_is_the_home_of_its_share() -> None:
    shares = Counter(ranked(key, NAMES)[0] for key in KEYS)
    assert set(shares) == set(NAMES)
    assert all(60 < share < 140 for share in shares.values())


def test_the_order_of_the_replicas_does_not_matter() -> None:
    assert all(ranked(key, NAMES) == ranked(key, NAMES[::-1]) for key in KEYS)


def test_only_images_of_whoever_goes_move() -> None:
    for key in KEYS:
        order = ranked(key, NAMES)
        for gone in NAMES:
            assert ranked(key, set(NAMES) - {gone}) == [name for name in order if name != gone]


def test_a_hot_home_is_the_last_to_be_asked() -> None:
    key = "image"
    home, *others = ranked(key, NAMES)
    idle = dict.fromkeys(NAMES, 0)
    assert preferred(key, idle | {home: 3}, hot_at=4, full_at=8) == [home, *others]
    assert preferred(key, idle | {home: 4}, hot_at=4, full_at=8) == [*others, home]


def test_home_is_not_hot_where_all_have_much() -> None:
    key = "image"
    order = ranked(key, NAMES)
    busy = dict.fromkeys(NAMES, 100)
    assert preferred(key, busy | {order[0]: 110}, hot_at=4, full_at=200) == order
    assert preferred(key, busy | {order[0]: 160}, hot_at=4, full_at=200) != order


def test_whoever_takes_no_more_is_asked_last() -> None:
    key = "image"
    order = ranked(key, NAMES)
    queues = dict.fromkeys(NAMES, 7) | {order[0]: 8}
    assert preferred(key, queues, hot_at=4, full_at=8) == [*order[1:], order[0]]


@given(st.lists(st.integers(0, 50), min_size=1, max_size=8), st.integers(1, 40), st.text())
def test_somebody_is_always_cool(lengths: list[int], hot_at: int, key: str) -> None:
    queues = {str(i): length for i, length in enumerate(lengths)}
    order = preferred(key, queues, hot_at=hot_at, full_at=100)
    assert sorted(order) == sorted(queues)
    assert queues[order[0]] < max(hot_at, 1.25 * (sum(lengths) + 1) / len(lengths))


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
    chosen = await asyncio.wait_for(asyncio.gather(*(send(of, f"{i}") for i in range(24))), 60)
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
        await asyncio.wait_for(asyncio.wait({waiting[expected[-1]]}), 60)
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
    await asyncio.wait_for(first, 60)
    assert not later.done()
    later.cancel()


async def test_without_replicas_calls_wait_until_there_are_some() -> None:
    of = await router([])
    waiting = [asyncio.create_task(send(of, str(i))) for i in range(3)]
    await settle()
    assert not any(task.done() for task in waiting)
    of.update_replicas(replicas("a"))  # type: ignore[arg-type]
    assert len(await asyncio.wait_for(asyncio.gather(*waiting), 60)) == 3


async def test_a_dead_replica_is_not_asked_again() -> None:
    of = await router(replicas(*NAMES))
    home = await send(of, "image")
    of.on_replica_actor_died(home.replica_id)
    assert (await send(of, "image")).replica_id.unique_id == ranked("image", NAMES)[1]


def test_the_bound_is_a_full_pass_that_a_replica_takes() -> None:
    def hot_at(batch: int, ongoing: int) -> int:
        settings = DecoderSettings(
            batching=Batching(max_batch_size=batch), max_ongoing_requests=ongoing
        )
        return int(affinity(settings).request_router_kwargs["hot_at"])

    assert (hot_at(32, 256), hot_at(32, 16)) == (32, 16)
    assert affinity(DecoderSettings()).get_request_router_class() is not None


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("_choose_replica_for_request", ["self", "pending_request", "is_retry"]),
        ("_select_from_candidate_replicas", ["self", "candidates", "backoff_index"]),
        ("_backoff", ["self", "attempt"]),
        ("choose_replicas", ["self", "candidate_replicas", "pending_request"]),
    ],
)
def test_what_the_router_takes_from_ray_is_still_there(name: str, parameters: list[str]) -> None:
    """Some of it is not public: a new version of Ray may change it."""
    assert list(inspect.signature(getattr(RequestRouter, name)).parameters) == parameters


@pytest.mark.parametrize("layout", ["split", "fused"])
def test_decoders_are_deployed_with_it_and_others_are_not(layout: str) -> None:
    variant = VariantSettings.model_validate({"model": "vit_t", "layout": layout})
    settings = GraphSettings(variants={"fast": variant})
    decoder = variant_node("fast", variant, settings)._bound_deployment
    others = [proposals_node(settings)._bound_deployment]
    if layout == "split":
        others.append(decoder.init_args[3]._bound_deployment)

    def routers(deployment: Deployment) -> type:
        found: type = deployment._deployment_config.request_router_config.get_request_router_class()
        return found

    assert routers(decoder).__name__ == AffinityRouter.__name__
    assert AffinityRouter.__name__ not in {routers(other).__name__ for other in others}
