"""The parts of "everything" against their counterparts in `segment_anything`."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st
from segment_anything.utils.amg import generate_crop_boxes, is_box_near_crop_edge

from serve_app.capabilities import Everything
from serve_app.capabilities.everything import Crop, _clean, _cut_off, crops_of, merge
from serve_app.core.limits import Limits
from serve_app.core.request import image_id
from serve_app.engines.proposals import grid_proposals
from serve_app.images.store import ImageRef, ImageStore

from ..fakes.masks import mask_of


@given(st.integers(8, 3_000), st.integers(8, 3_000), st.integers(0, 2), st.floats(0, 0.9))
def test_crops_are_metas(width: int, height: int, layers: int, overlap: float) -> None:
    boxes, indices = generate_crop_boxes((height, width), layers, overlap)
    ours = crops_of(width, height, layers, overlap)
    as_boxes = [[c.x, c.y, c.x + c.width, c.y + c.height] for c in ours]
    # Meta's has crops without a pixel at the border of small images; they can hold no mask.
    theirs = [(b, i) for b, i in zip(boxes, indices, strict=True) if b[0] < b[2] and b[1] < b[3]]
    assert list(zip(as_boxes, (c.layer for c in ours), strict=True)) == theirs


@given(st.integers(1, 12), st.integers(1, 12), st.integers(0, 3), st.floats(0, 0.99))
def test_crops_of_tiny_images_have_pixels(w: int, h: int, layers: int, overlap: float) -> None:
    crops = crops_of(w, h, layers, overlap)
    assert crops[0] == Crop(0, 0, w, h, 0)
    for crop in crops:
        assert min(crop.width, crop.height) > 0
        assert min(crop.x, crop.y) >= 0
        assert crop.x + crop.width <= w
        assert crop.y + crop.height <= h


def test_masks_cut_off_by_a_crop_are_metas() -> None:
    """Boxes with one edge moved over all distances from the crop's borders."""
    crop, whole = Crop(50, 0, 150, 100, 1), [0, 0, 300, 200]
    image = ImageRef(ImageStore(Limits(), 0), image_id(np.zeros((200, 300, 3), np.uint8)), None)
    inner = [100, 30, 150, 60]
    outcomes = set()
    for edge, places in enumerate((range(50, 90), range(40), range(150, 200), range(60, 100))):
        for place in places:
            x0, y0, x1, y1 = (place if i == edge else v for i, v in enumerate(inner))
            box = torch.tensor([[x0 - 50, y0, x1 - 50, y1]])  # in the crop's frame
            theirs = bool(is_box_near_crop_edge(box, [50, 0, 200, 100], whole)[0])
            mask = replace(
                mask_of(np.ones((1, 1), np.bool_)), bbox=(x0, y0, x1 - x0 + 1, y1 - y0 + 1)
            )
            assert _cut_off(mask, crop, image) == theirs, (x0, y0, x1, y1)
            outcomes.add((edge, theirs))
    # The upper border is the image's own, where nothing is cut off.
    assert outcomes == {(e, cut) for e in range(4) for cut in (True, False)} - {(1, True)}


def test_the_grid_lies_in_the_centres_of_equal_cells() -> None:
    proposals = grid_proposals((60, 30), 3)
    points = [
        p.prompt.point_coords[0].tolist() for p in proposals if p.prompt.point_coords is not None
    ]
    assert points[:4] == [[10, 5], [30, 5], [50, 5], [10, 15]]
    assert len(points) == 9


def test_of_equal_scores_the_earlier_mask_stays() -> None:
    array = np.zeros((20, 20), np.bool_)
    array[2:12, 2:12] = True
    shifted = np.roll(array, 1, axis=1)
    first, second = mask_of(array), mask_of(shifted)
    assert merge([first, second], 0.5) == [first]
    assert merge([second, first], 0.5) == [second]
    assert merge([first, second], 0.9) == [first, second]
    assert merge([], 0.5) == []


def test_boxes_overlap_as_meta_measures_them() -> None:
    """Between first and last pixel: 4 pixels are a box of 3, so these overlap by 4/9."""
    masks = []
    for side in (4, 3):
        array = np.zeros((9, 9), np.bool_)
        array[1 : 1 + side, 1 : 1 + side] = True
        masks.append(mask_of(array))
    assert merge(masks, 0.45) == masks
    assert merge(masks, 0.44) == masks[:1]


def test_cleaning_fills_holes_and_drops_islands_and_what_then_is_a_duplicate() -> None:
    whole = np.zeros((40, 40), np.bool_)
    whole[5:25, 5:25] = True
    ragged = whole.copy()
    ragged[10:12, 10:12] = False  # a hole
    ragged[35:37, 35:37] = True  # an island
    task = Everything(min_mask_region_area=10)
    (cleaned,) = _clean([mask_of(ragged)], task)
    assert np.array_equal(cleaned.array, whole)
    assert (cleaned.bbox, cleaned.area) == ((5, 5, 20, 20), 400)
    # Clean ones win over those that had to be cleaned, whatever their scores.
    untouched = mask_of(whole, 0.5)
    assert _clean([mask_of(ragged, 0.99), untouched], task) == [untouched]
    # Holes and islands at the bound itself stay.
    kept = mask_of(ragged)
    assert _clean([kept], Everything(min_mask_region_area=4)) == [kept]
