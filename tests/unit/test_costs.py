"""How much work a task is, for the router."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from serve_app.capabilities import CAPABILITIES, Everything, SegmentRequest, TextQuery
from serve_app.core.capability import Cost
from serve_app.core.limits import Limits
from serve_app.core.types import Prompt, ProposalSource
from serve_app.images.store import ImageRef, ImageStore

BOX = Prompt(box=[1, 1, 9, 9])
POINT = Prompt(point_coords=[[5, 5]], point_labels=[1])
BOTH = Prompt(point_coords=[[5, 5]], point_labels=[1], box=[1, 1, 9, 9])
GRID, DETECTOR = ProposalSource.GRID, ProposalSource.DETECTOR


@pytest.fixture
async def image() -> ImageRef:
    return await ImageStore(Limits(), 2**20).open(np.zeros((40, 60, 3), np.uint8))


@pytest.mark.parametrize(
    ("task", "kind", "prompts", "images"),
    [
        ([BOX], "box", 1, 1),
        ([POINT] * 3, "point", 3, 1),
        ([BOX, POINT], "box", 2, 1),
        ([BOX, POINT, POINT], "point", 3, 1),
        ([BOTH], "box", 1, 1),
        ([Prompt(mask_input=np.zeros((256, 256)))], "point", 1, 1),
        (TextQuery(text=("a", "b"), proposals=GRID, points_per_side=8), "point", 64, 1),
        (TextQuery(text=("a",), proposals=DETECTOR), "box", 10, 1),
        (TextQuery(text=("a",)), "box", 10, 1),
        (Everything(points_per_side=8), "point", 64, 1),
        (Everything(proposals=DETECTOR, crop_n_layers=1), "box", 10, 1),
        # The whole image, and four crops.
        (Everything(points_per_side=8, crop_n_layers=1), "point", 5 * 64, 5),
        (
            Everything(points_per_side=8, crop_n_layers=1, crop_n_points_downscale_factor=2),
            "point",
            64 + 4 * 16,
            5,
        ),
        (
            Everything(points_per_side=2, crop_n_layers=2, crop_n_points_downscale_factor=4),
            "point",
            4 + 4 + 16,
            21,
        ),
    ],
)
async def test_the_type_and_number_of_prompts(
    image: ImageRef, task: Any, kind: str, prompts: int, images: int
) -> None:
    task = SegmentRequest(image="x", task=task).task
    cost = await CAPABILITIES[type(task)].cost(task, image, None)
    assert cost.prompt_type == kind
    assert (sum(cost.prompts), len(cost.prompts)) == (prompts, images)
    assert cost.filtered == isinstance(task, Everything)


@pytest.mark.parametrize(
    ("prompts", "mixed"), [([BOX], False), ([POINT], False), ([BOX, POINT], True)]
)
async def test_prompts_of_both_types_are_mixed(
    image: ImageRef, prompts: list[Prompt], mixed: bool
) -> None:
    task = SegmentRequest(image="x", task=prompts).task
    assert (await CAPABILITIES[type(task)].cost(task, image, None)).mixed is mixed


def test_a_cost_is_no_work_unless_it_is_said() -> None:
    assert (sum(Cost().prompts), len(Cost().prompts)) == (0, 1)
