"""Private parts whose meaning only a running Ray shows; one Ray for the module."""

from __future__ import annotations

import asyncio
import os
import signal
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeAlias

import httpx
import pytest
from ray import serve
from ray.serve.config import RequestRouterConfig

from serve_app.core.types import CacheTier
from serve_app.http.body import timeout_of
from tests.cluster.ray_cluster import wait_until

from . import holders, probes
from .holders import FULL_AT, HOT_AT, REPLICAS, Answer

pytestmark = pytest.mark.cluster

Ask: TypeAlias = Callable[..., list[Answer]]
PATIENCE_S = 120.0
IMAGES = [f"2x2-{i:064x}" for i in range(48)]


# Probes.


@pytest.fixture(scope="module")
def probe(url: str) -> Iterator[Callable[..., Any]]:
    """Calls a method of the probe."""
    serve.run(probes.application(), name="probes", route_prefix=None)
    handle = serve.get_app_handle("probes")

    def call(method: str, *args: Any) -> Any:
        return getattr(handle, method).remote(*args).result(timeout_s=2 * PATIENCE_S)

    yield call
    serve.delete("probes")


def test_replica_counts_follow_the_controller(probe: Callable[..., Any]) -> None:
    assert probe("replica_counts") == {"callee": probes.CALLEES, "absent": 0}


def test_a_renamed_request_keeps_its_name_in_calls(probe: Callable[..., Any]) -> None:
    before, after, callee = probe("request_ids")
    assert before
    assert (after, callee) == ("renamed", "renamed")


def test_calls_by_reference_pass_the_object_store(probe: Callable[..., Any]) -> None:
    assert probe("travels_by_reference") is True


@pytest.mark.parametrize("reference", [True, False], ids=["actor call", "gRPC"])
def test_the_death_of_a_callee_is_recognised(probe: Callable[..., Any], reference: bool) -> None:
    assert probe("lost", reference) == "CalleeLost"


def test_serves_logger_writes_into_serves_log_folder(probe: Callable[..., Any]) -> None:
    folder, files = probe("log_files")
    assert files
    assert all(file.startswith(folder) for file in files)


def test_every_nodes_metrics_are_found(probe: Callable[..., Any]) -> None:
    wait_until(
        lambda: "ray_serve_deployment_replica_healthy{" in probe("metrics"),
        "Ray has collected metrics",
        2 * PATIENCE_S,
    )


def test_a_full_deployment_drops_requests_with_the_text_the_proxy_knows(url: str) -> None:
    serve.run(probes.busy(), name="busy", route_prefix="/busy")

    async def first_response() -> httpx.Response:
        async with httpx.AsyncClient(timeout=PATIENCE_S, trust_env=False) as client:
            calls = [asyncio.create_task(client.get(f"{url}/busy")) for _ in range(4)]
            done, waiting = await asyncio.wait(calls, return_when=asyncio.FIRST_COMPLETED)
            for call in waiting:
                call.cancel()
            return done.pop().result()

    try:
        response = asyncio.run(first_response())
        assert response.status_code == httpx.codes.SERVICE_UNAVAILABLE
        assert "dropped due to backpressure" in response.text
        error = response.json()["error"]
        assert (error["code"], error["request_id"]) == (
            "overloaded", response.headers["x-request-id"]
        )  # fmt: skip
        assert int(response.headers["retry-after"]) >= 1
    finally:
        serve.delete("busy")


def test_a_callers_timeout_is_not_the_proxys(url: str) -> None:
    """Ray's own answer would be a text with status 408, after 0.1 s."""
    serve.run(probes.slow(), name="slow", route_prefix="/slow")
    try:
        sent = {"x-request-timeout-seconds": "0.1"}
        response = httpx.get(f"{url}/slow", headers=sent, timeout=PATIENCE_S, trust_env=False)
        assert response.status_code == httpx.codes.OK
        assert timeout_of(response.json()) == 0.1
        assert "x-request-timeout-seconds" not in response.json()
    finally:
        serve.delete("slow")


def test_a_route_that_ray_does_not_know_is_told_in_the_services_form(url: str) -> None:
    response = httpx.get(f"{url}/nothing", timeout=PATIENCE_S, trust_env=False)
    error = response.json()["error"]
    assert (response.status_code, error["code"]) == (404, "not_found")
    assert error["request_id"] == response.headers["x-request-id"]


# Affinity: calls for an image go to the replica with its embedding, and none hangs.


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("gate")


@pytest.fixture(scope="module")
def caller(url: str, folder: Path) -> Iterator[Any]:
    serve.run(holders.application(str(folder)), name="holders", route_prefix=None)
    yield serve.get_app_handle("holders")
    serve.delete("holders")


@pytest.fixture(scope="module")
def ask(caller: Any) -> Ask:
    """Concurrent calls within one request; returns the replica and cache tier of each."""

    def call(method: str, *args: Any) -> list[Answer]:
        answers: list[Answer] = getattr(caller, method).remote(*args).result(timeout_s=PATIENCE_S)
        return answers

    return call


def homes(answers: list[Answer]) -> list[str]:
    return [replica for replica, _ in answers]


def test_an_image_goes_where_its_embedding_is(ask: Ask) -> None:
    # One by one, so that nobody is hot.
    first = [ask("ask", [image])[0] for image in IMAGES]
    assert {tier for _, tier in first} == {CacheTier.MISS}
    assert len(set(homes(first))) == REPLICAS
    again = [ask("ask", [image], False)[0] for image in IMAGES]
    assert again == [(home, CacheTier.MEMORY) for home in homes(first)]


def test_many_calls_of_one_request_are_all_answered(ask: Ask) -> None:
    """Routers that look calls up by their request's id answer one of them."""
    assert len(ask("ask", IMAGES)) == len(IMAGES)
    assert len(ask("ask", IMAGES[:1] * 50)) == 50


def test_a_hot_image_spills_over_and_comes_home(ask: Ask) -> None:
    image = "2x2-" + "a" * 64
    home = ask("ask", [image])[0][0]
    # More calls than all replicas take at once: the last ones wait for a place.
    calls, room = 40, REPLICAS * FULL_AT
    assert calls > room
    crowd = Counter(homes(ask("crowd", image, calls, room)))
    assert sum(crowd.values()) == calls
    assert len(crowd) == REPLICAS
    assert crowd[home] >= FULL_AT

    # Some calls at once are no reason to leave home, once the crowd's places are known to be free.
    def at_home() -> bool:
        few = ask("crowd", image, HOT_AT, HOT_AT)
        assert {tier for _, tier in few} == {CacheTier.MEMORY}
        return homes(few) == [home] * HOT_AT

    wait_until(at_home, "some calls stay at home", PATIENCE_S)


def test_a_dead_replicas_images_move_and_no_others(ask: Ask) -> None:
    before = dict(zip(IMAGES, homes([ask("ask", [image])[0] for image in IMAGES]), strict=True))
    dead = before[IMAGES[0]]
    os.kill(int(dead), signal.SIGKILL)
    after = dict(zip(IMAGES, homes([ask("ask", [image])[0] for image in IMAGES]), strict=True))
    assert dead not in after.values()
    newcomers = set(after.values()) - set(before.values())
    for image in IMAGES:
        # Whoever took the dead one's place takes its share of all images.
        assert before[image] == dead or after[image] in {before[image], *newcomers}


def test_rays_own_router_forgets(caller: Any, ask: Ask, folder: Path) -> None:
    """What affinity is for: the same replicas, asked as Ray asks them."""
    images = [image.replace("-0", "-b") for image in IMAGES]
    router = RequestRouterConfig()
    serve.run(holders.application(str(folder), router), name="holders", route_prefix=None)
    for image in images:
        ask("ask", [image])
    again = [ask("ask", [image], False)[0] for image in images]
    assert 0 < again.count(None) < len(images)  # type: ignore[arg-type]
