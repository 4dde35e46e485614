"""Fractions of a GPU, and the fused layout, on real replicas beside the local application."""

from __future__ import annotations

import json
from typing import Any

import httpx
import numpy as np
import pytest

from ..golden.cases import cases_of, iou, photo
from .conftest import Served
from .ray_cluster import wait_until
from .test_http import mask_of, png, prompt_fields

pytestmark = [pytest.mark.cluster, pytest.mark.weights]

ON_GPU = {
    "fast-encoder": 0.2,
    "fast-decoder": 0.1,
    "accurate-encoder": 0.2,
    "accurate-decoder": 0.1,
}


def ask(served: Served, prefix: str, variant: str = "fast") -> list[Any]:
    prompts = [prompt_fields(case.prompt) for case in cases_of("chelsea")[:8]]
    answer = httpx.post(
        f"{served.url}{prefix}/v1/segment",
        files={"file": png(photo("chelsea"))},
        data={"request": json.dumps({"prompts": prompts, "variant": variant})},
        timeout=300,
        trust_env=False,
    )
    assert answer.status_code == 200, answer.text
    results: list[Any] = answer.json()["results"]
    return results


@pytest.mark.usefixtures("driver")
def test_encoders_and_decoders_of_two_variants_share_one_gpu(placed: Served) -> None:
    import ray

    replicas = placed.cluster.replicas("gpus")
    assert {name: len(replicas[name]) for name in ON_GPU} == dict.fromkeys(ON_GPU, 1)
    assert ray.cluster_resources()["GPU"] == 1
    # The node reports what is left some moments after a replica has started.
    left = 1 - sum(ON_GPU.values())
    wait_until(
        lambda: abs(ray.available_resources()["GPU"] - left) < 1e-3,
        "the GPU is shared as configured",
        120.0,
    )
    assert len({replicas[name][0]["pid"] for name in ON_GPU}) == len(ON_GPU)
    assert len({replicas[name][0]["node_id"] for name in ON_GPU}) == 1


def test_replicas_on_a_shared_gpu_answer_for_both_variants(placed: Served) -> None:
    same(ask(placed, "/gpus", "fast"), ask(placed, ""))
    same(ask(placed, "/gpus", "accurate"), ask(placed, ""))


def test_the_fused_graph_answers_as_the_split_one(placed: Served) -> None:
    assert set(placed.cluster.replicas("clicks")) == {"ingress", "proposals", "fast-decoder"}
    same(ask(placed, "/clicks"), ask(placed, ""))


def test_a_graph_without_text_says_so(placed: Served) -> None:
    answer = httpx.post(
        f"{placed.url}/clicks/v1/segment",
        files={"file": png(photo("chelsea"))},
        data={"text": "cat"},
        timeout=300,
        trust_env=False,
    )
    assert (answer.status_code, answer.json()["error"]["code"]) == (422, "text_unavailable")


def same(results: list[Any], others: list[Any]) -> None:
    for one, other in zip(results, others, strict=True):
        for a, b in zip(one["masks"], other["masks"], strict=True):
            # Who shares a pass with whom is chance, and of it depend the last digits.
            assert iou(mask_of(a), mask_of(b)) >= 0.999
            np.testing.assert_allclose(a["score"], b["score"], atol=1e-3)
