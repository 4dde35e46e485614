"""Affinity routing on real replicas: who has an image's embedding is asked, and nobody hangs."""

from __future__ import annotations

import os
import signal
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeAlias

import pytest
from ray import serve
from ray.serve.config import RequestRouterConfig

from serve_app.domain.types import CacheTier

from . import holders
from .holders import FULL_AT, HOT_AT, REPLICAS, Answer
from .ray_cluster import wait_until

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.weights,  # the cluster serves the local configuration, too
    pytest.mark.usefixtures("driver"),
]

Ask: TypeAlias = Callable[..., list[Answer]]
PATIENCE_S = 120.0
IMAGES = [f"2x2-{i:064x}" for i in range(48)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("gate")


@pytest.fixture(scope="module")
def caller(driver: None, folder: Path) -> Iterator[Any]:
    serve.run(holders.application(str(folder)), name="holders", route_prefix=None)
    yield serve.get_app_handle("holders")
    serve.delete("holders")


@pytest.fixture(scope="module")
def ask(caller: Any) -> Ask:
    """Calls of one request, each answered with who answered and from which tier."""

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
