"""A box that reaches over the border of the image gives the mask of its part inside."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from serve_app.capabilities import SegmentRequest
from serve_app.core.settings import GraphSettings
from serve_app.core.types import Prompt
from serve_app.local import build_local_service

from .cases import iou

pytestmark = pytest.mark.weights

WIDTH, HEIGHT = 640, 427
# Discs that the border of the image cuts: x, y, radius.
DISCS = [(0, 0, 90), (640, 200, 60), (320, 427, 80), (640, 427, 110)]


@pytest.mark.parametrize("model", ["vit_t", "sam2_hiera_tiny"])
async def test_objects_at_the_border(one_variant: Callable[..., GraphSettings], model: str) -> None:
    y, x = np.mgrid[:HEIGHT, :WIDTH] + 0.5
    image = np.random.default_rng(0).normal((60, 90, 70), 6, (HEIGHT, WIDTH, 3))
    discs = [np.hypot(x - cx, y - cy) < r for cx, cy, r in DISCS]
    image[np.any(discs, axis=0)] += (160, 90, -10)
    pixels = image.clip(0, 255).astype(np.uint8)
    whole = [Prompt(box=[x - r, y - r, x + r, y + r], multimask_output=False) for x, y, r in DISCS]
    inside = [prompt.inside(WIDTH, HEIGHT)[0] for prompt in whole]
    service = build_local_service(one_variant(model))
    result = await service.segment(SegmentRequest(image=pixels, task=[*whole, *inside]))
    masks = [one.masks[0].array for one in result.results]
    for over, cut, disc in zip(masks, masks[len(discs) :], discs, strict=False):
        np.testing.assert_array_equal(over, cut)
        assert iou(over, disc) >= 0.9
