"""``configs/gpu.yaml`` as it is shipped, on a real GPU; skipped where there is none."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch

from serve_app.engines.sam.model import load_sam
from serve_tools.synthetic.scenes import all_captions, draw_scene
from tests.tiny_clip import captions

from ..chaos.client import Client
from ..chaos.service import Service, kill_and_wait
from ..golden.cases import cases_of, iou, photo, reference_answers
from .gpu import BOX, gpu_service, known
from .ray_cluster import wait_until
from .test_http import mask_of, png, prompt_fields

DRY = "SAM_SERVE_PRETEND_GPU" in os.environ
"""Whether CPUs play the GPU's part: for who changes these tests."""

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.weights,
    pytest.mark.skipif(not (DRY or torch.cuda.is_available()), reason="there is no GPU"),
]

ROLES = {
    "ingress", "proposals", "text",
    "fast-encoder", "fast-decoder", "accurate-encoder", "accurate-decoder",
}  # fmt: skip


@pytest.fixture(scope="module")
def service() -> Iterator[Service]:
    with gpu_service(dry=DRY) as found:
        yield found


def ask(service: Service, pixels: np.ndarray, request: dict[str, Any]) -> dict[str, Any]:
    answer = httpx.post(
        f"{service.url}/v1/segment",
        files={"file": png(pixels)},
        data={"request": json.dumps(request)},
        timeout=120,
        trust_env=False,
    )
    assert answer.status_code == 200, answer.text
    told: dict[str, Any] = answer.json()
    return told


def test_all_of_it_shares_the_gpu(service: Service) -> None:
    assert set(service.roles()) == ROLES
    assert all(len(pids) == 1 for pids in service.roles().values())


def test_the_fast_variants_masks_agree_with_sam_predictors(
    service: Service, weight_paths: Callable[[str], dict[str, Path]]
) -> None:
    cases = [c for c in cases_of("chelsea") if c.prompt.mask_input is None]
    prompts = [prompt_fields(case.prompt) for case in cases]
    answer = ask(service, photo("chelsea"), {"prompts": prompts, "variant": "fast"})
    sam = load_sam("vit_t", weight_paths("vit_t")["checkpoint"])
    wanted = reference_answers(sam, photo("chelsea"), [c.prompt for c in cases])
    found = [mask_of(mask) for result in answer["results"] for mask in result["masks"]]
    expected = [mask for reference in wanted for mask in reference.masks]
    agree = [iou(one, two) for one, two in zip(found, expected, strict=True)]
    print(f"IoU mean {np.mean(agree):.5f}, worst {min(agree):.5f}")
    assert np.mean(agree) >= 0.995
    assert min(agree) >= 0.95


def test_the_accurate_variant_answers(service: Service) -> None:
    answer = ask(service, photo("coffee"), {"prompts": [BOX], "variant": "accurate"})
    assert answer["variant"] == "accurate"
    (mask,) = answer["results"][0]["masks"]
    assert np.isfinite(mask["score"])


def test_everything_finds_objects(service: Service) -> None:
    answer = ask(service, photo("chelsea"), {"everything": {"points_per_side": 16}})
    assert len(answer["results"][0]["masks"]) > 3


def test_text_finds_what_is_there_and_nothing_else(service: Service) -> None:
    scene = draw_scene(7)
    absent = next(c for c in all_captions() if c not in captions(scene))
    request = {"text": [*captions(scene), absent], "points_per_side": 12}
    *present, missing = ask(service, scene.pixels, request)["results"]
    assert sum(result["present"] for result in present) >= 0.8 * len(captions(scene))
    assert missing["present"] is False


def back(service: Service, role: str, gone: int) -> bool:
    return service.status() == "RUNNING" and gone not in service.pids(role)


async def test_killed_replicas_on_the_gpu_come_back(service: Service) -> None:
    """Requests ask another one, or wait for the next, and none is lost."""
    make = known("fast")
    for role in ("fast-decoder", "fast-encoder"):
        pid = service.pids(role)[0]
        async with Client(service.url) as client:
            load = asyncio.create_task(client.open_loop(make, 5.0, 4.0))
            await asyncio.sleep(1.0)
            await asyncio.to_thread(kill_and_wait, pid)
            await load
            assert client.ledger.unanswered == 0
            assert client.ledger.contradictions() == 0
            assert set(client.ledger.statuses()) == {200}, client.ledger.table()
        await asyncio.to_thread(
            wait_until, lambda gone=pid, of=role: back(service, of, gone), "it is back", 120.0
        )
