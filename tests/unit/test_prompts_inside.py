"""Prompts at and over the border of the image: clipped in one place, before any model."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve_app.capabilities import SegmentRequest
from serve_app.core.errors import InvalidPrompt
from serve_app.core.types import Mask, Prompt, SegmentResult

from ..fakes.flow import FakeGraph
from ..fakes.masks import rectangle_mask
from ..fakes.ports import Size, prompted_masks

WIDTH, HEIGHT = 60, 40
PIXELS = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
COORDINATE = st.floats(-1e6, 1e6, width=32) | st.floats(-9, 99, width=32)


def box(*corners: float) -> Prompt:
    return Prompt(box=corners)


def point(*xy: float) -> Prompt:
    return Prompt(point_coords=[xy], point_labels=[1])


async def segmented(prompts: list[Prompt], seen: list[Prompt] | None = None) -> SegmentResult:
    """The response; ``seen`` collects the prompts that the model gets."""
    graph = FakeGraph()

    def masks(prompt: Prompt, size: Size) -> tuple[Mask, ...]:
        if seen is not None:
            seen.append(prompt)
        return prompted_masks(prompt, size)

    graph.fast.masks_of = masks
    return await graph.flow.segment(SegmentRequest(image=PIXELS, task=prompts))


def codes(result: SegmentResult) -> dict[str, tuple[str | None, int]]:
    return {w.code: (w.field, w.count) for w in result.warnings}


@given(st.tuples(COORDINATE, COORDINATE), st.tuples(COORDINATE, COORDINATE))
def test_a_box_is_clipped_or_lies_outside(
    first: tuple[float, float], second: tuple[float, float]
) -> None:
    x0, y0, x1, y1 = *np.minimum(first, second), *np.maximum(first, second)
    if not (x0 < x1 and y0 < y1):
        return
    wanted = [max(x0, 0), max(y0, 0), min(x1, WIDTH), min(y1, HEIGHT)]
    if wanted[0] >= wanted[2] or wanted[1] >= wanted[3]:
        with pytest.raises(InvalidPrompt, match="outside the image of 60 x 40"):
            box(x0, y0, x1, y1).inside(WIDTH, HEIGHT)
        return
    clipped, _ = box(x0, y0, x1, y1).inside(WIDTH, HEIGHT)
    assert clipped.box is not None
    np.testing.assert_array_equal(clipped.box, np.array(wanted, np.float32))
    assert not clipped.box.flags.writeable
    # It is inside now: nothing is clipped twice.
    assert clipped.inside(WIDTH, HEIGHT)[0] is clipped


@given(st.floats(-2, 2, width=32), st.sampled_from([0, 1]))
def test_points_on_all_borders_are_treated_alike(beyond: float, axis: int) -> None:
    """Up to half a pixel outside they are put on the border, left, right, above and below."""
    size = np.array([WIDTH, HEIGHT], np.float32)
    low, high = size / 2, size / 2
    low[axis], high[axis] = -beyond, size[axis] + beyond
    for xy in (low, high):
        if beyond > 0.5 and (xy < -0.5).any() | (xy > size + 0.5).any():
            with pytest.raises(InvalidPrompt, match="a point lies outside"):
                point(*xy.tolist()).inside(WIDTH, HEIGHT)
        else:
            clipped, _ = point(*xy.tolist()).inside(WIDTH, HEIGHT)
            np.testing.assert_array_equal(clipped.point_coords, [xy.clip(0, size)])


async def test_models_get_the_clipped_prompts() -> None:
    seen: list[Prompt] = []
    await segmented([box(-90, -90, 30, 20), point(-0.4, 40.4)], seen)
    of_box, of_point = seen
    assert of_box.box is not None
    assert of_point.point_coords is not None
    assert of_box.box.tolist() == [0, 0, 30, 20]
    assert of_point.point_coords.tolist() == [[0, 40]]


@pytest.mark.parametrize(
    ("prompt", "code"),
    [
        (box(0.54, 0.58, 0.68, 0.82), "normalized_coordinates"),
        (box(0, 0, 1, 1), "normalized_coordinates"),
        (point(0.6, 0.7), "normalized_coordinates"),
        (box(10, 10, 10.5, 30), "tiny_box"),
        (box(-90, -90, 0.5, 30), "tiny_box"),
        (box(-40, 10, 30, 30), "box_clipped"),
        (box(-20, 10, 30, 30), None),
        (box(10, 10, 11, 30), None),
        (point(0.6, 1.5), None),
        (point(0, 1), None),
        (Prompt(point_coords=[[0.6, 0.7]], point_labels=[1], box=[0, 0, 20, 20]), None),
        (Prompt(mask_input=np.zeros((256, 256))), None),
    ],
)
async def test_what_is_odd_of_a_prompt_is_a_warning(prompt: Prompt, code: str | None) -> None:
    result = await segmented([box(5, 5, 20, 20), prompt, prompt])
    found = codes(result)
    if code is None:
        assert not found
    else:
        assert found[code] == ("prompts[1]", 2)


async def test_in_an_image_of_few_pixels_shares_may_be_pixels() -> None:
    assert box(0, 0, 1, 1).inside(8, 8)[1] == []
    assert box(0, 0, 1, 1).inside(9, 1)[1] == ["normalized_coordinates"]


@pytest.mark.parametrize(
    ("members", "code"),
    [({"area": 0}, "empty_mask"), ({"score": 1.01}, "score_above_one"), ({"score": 1.0}, None)],
)
async def test_what_is_odd_of_a_mask_is_a_warning(
    members: dict[str, Any], code: str | None
) -> None:
    graph = FakeGraph()

    def masks(prompt: Prompt, size: Size) -> tuple[Mask, ...]:
        score = members.get("score", 0.9)
        area = (0, 0, 0, 0) if "area" in members else (3, 3, 4, 4)
        usual = rectangle_mask((1, 1, 5, 5), 0.9, 1.0, size)
        odd = rectangle_mask(area, score, 1.0, size)
        return (usual, odd, odd) if prompt.multimask_output else (usual,)

    graph.fast.masks_of = masks
    prompts = [Prompt(box=[5, 5, 20, 20], multimask_output=m) for m in (False, True, True)]
    result = await graph.flow.segment(SegmentRequest(image=PIXELS, task=prompts, variant="fast"))
    assert codes(result) == ({} if code is None else {code: ("prompts[1]", 2)})
