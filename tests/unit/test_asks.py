"""What a request asks of the router: its hints, and how much work it is."""

from __future__ import annotations

import numpy as np
import pytest

from serve_app.core.limits import Limits
from serve_app.core.types import (
    Everything,
    Prompt,
    ProposalSource,
    SegmentRequest,
    Task,
    TextQuery,
)
from serve_app.flow.asks import routing_query
from serve_app.images.store import ImageStore, OpenImage
from serve_app.routing.types import RoutingQuery

BOX = Prompt(box=[1, 1, 9, 9])
POINT = Prompt(point_coords=[[5, 5]], point_labels=[1])
BOTH = Prompt(point_coords=[[5, 5]], point_labels=[1], box=[1, 1, 9, 9])
GRID, DETECTOR = ProposalSource.GRID, ProposalSource.DETECTOR


@pytest.fixture
async def image() -> OpenImage:
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
        (TextQuery(texts=("a", "b"), proposals=GRID, points_per_side=8), "point", 64, 1),
        (TextQuery(texts=("a",), proposals=DETECTOR), "box", 10, 1),
        (TextQuery(texts=("a",)), "box", 10, 1),
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
async def test_the_kind_and_number_of_prompts(
    image: OpenImage, task: Task, kind: str, prompts: int, images: int
) -> None:
    ask = routing_query(SegmentRequest(image="x", task=task), image)
    mixed = task in ([BOX, POINT], [BOX, POINT, POINT])
    filtered = isinstance(task, Everything)
    wanted = RoutingQuery(
        kind=kind,  # type: ignore[arg-type]
        mixed=mixed,
        prompts=prompts,
        images=images,
        filtered=filtered,
    )
    assert ask == wanted


async def test_hints_are_handed_on(image: OpenImage) -> None:
    request = SegmentRequest(
        image="x", task=[BOX], variant="fast", max_latency_ms=150.5, min_quality=0.75
    )
    assert routing_query(request, image) == RoutingQuery(
        variant="fast", max_latency_ms=150.5, min_quality=0.75, kind="box", prompts=1
    )
