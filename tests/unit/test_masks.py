from __future__ import annotations

import io
import tracemalloc
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from PIL import Image
from pycocotools import mask as coco
from scipy.ndimage import label
from segment_anything.utils import amg
from torchvision.ops import nms

from serve_app.core.geometry import box_nms
from serve_app.core.rle import (
    changes_of,
    decode_part,
    decode_rle,
    encode_part,
    encode_rle,
    parse_rle,
    rle_bbox,
    rle_of,
)
from serve_app.core.types import BoolArray, Mask
from serve_app.masks.operations import masks_npz, remove_small_regions, rle_in_canvas
from serve_app.masks.outlines import Polygon, Ring, geojson_coordinates, ring_area, rle_polygons
from serve_app.masks.png import mask_png
from serve_app.masks.runs import row_changes

Placed = tuple[int, int, int, int]
placed = st.tuples(*[st.integers(0, 4)] * 4)
sides = st.tuples(st.integers(1, 14), st.integers(1, 14))
masks = sides.flatmap(lambda shape: arrays(np.bool_, shape))


def mask_polygons(mask: BoolArray) -> list[Polygon]:
    return rle_polygons(encode_rle(mask))


def rasterised(polygons: list[Polygon], height: int, width: int) -> BoolArray:
    """Even-odd filling by pixel centres, of each polygon; also checks that none overlap."""
    y, x = (grid.astype(np.float64) + 0.5 for grid in np.mgrid[:height, :width])
    count = np.zeros((height, width), np.int64)
    for polygon in polygons:
        inside = np.zeros((height, width), np.bool_)
        for ring in polygon:
            for (x0, y0), (x1, y1) in zip(ring, np.roll(ring, -1, axis=0), strict=True):
                if y0 != y1:
                    crosses = (y0 > y) != (y1 > y)
                    inside ^= crosses & (x < (x1 - x0) * (y - y0) / (y1 - y0) + x0)
        count += inside
    assert count.max(initial=0) <= 1
    return count.astype(np.bool_)


@given(masks)
@settings(max_examples=150, deadline=None)
def test_polygons_give_back_the_mask(mask: BoolArray) -> None:
    polygons = mask_polygons(mask)
    assert (rasterised(polygons, *mask.shape) == mask).all()
    for polygon in polygons:
        assert ring_area(polygon[0]) > 0
        assert all(ring_area(hole) < 0 for hole in polygon[1:])
        for ring in polygon:
            assert (ring * 2 == np.rint(ring * 2)).all()
            # Every vertex is a corner.
            before, after = ring - np.roll(ring, 1, axis=0), np.roll(ring, -1, axis=0) - ring
            assert (before[:, 0] * after[:, 1] != before[:, 1] * after[:, 0]).all()


@given(masks)
@settings(max_examples=100, deadline=None)
def test_rle_gives_back_the_mask(mask: BoolArray) -> None:
    assert (decode_rle(encode_rle(mask)) == mask).all()


@given(masks, placed)
@settings(max_examples=300, deadline=None)
def test_changes_are_where_the_mask_begins_and_ends(mask: BoolArray, around: Placed) -> None:
    whole = on_canvas(mask, around)
    rle = encode_rle(whole)

    def changes(line: BoolArray) -> list[int]:
        return np.flatnonzero(np.diff(line, prepend=False, append=False)).tolist()

    assert changes_of(rle).tolist() == changes(whole.ravel(order="F"))
    assert rle_of(changes_of(rle), rle.size) == rle
    starts, xs = row_changes(rle)
    assert [xs[a:b].tolist() for a, b in pairwise(starts.tolist())] == [*map(changes, whole)]


@pytest.mark.parametrize("diagonal", [np.eye(2, dtype=np.bool_), np.eye(2, dtype=np.bool_)[::-1]])
def test_pixels_that_touch_at_a_corner_are_parts_of_their_own(diagonal: BoolArray) -> None:
    assert [len(polygon) for polygon in mask_polygons(diagonal)] == [1, 1]
    holes = np.pad(~diagonal, 1, constant_values=True)
    assert [len(polygon) for polygon in mask_polygons(holes)] == [2]  # so these two are one hole


def test_parts_and_holes_are_kept() -> None:
    mask = np.zeros((40, 60), np.bool_)
    mask[5:25, 5:25] = True
    mask[10:15, 10:15] = False  # a hole
    mask[12, 12] = True  # an island in the hole: a part of its own
    mask[30:35, 40:55] = True
    assert sorted(len(polygon) for polygon in mask_polygons(mask)) == [1, 1, 2]


def test_a_rectangle_has_eight_vertices_in_the_documented_frame() -> None:
    mask = np.zeros((10, 20), np.bool_)
    mask[2:5, 3:9] = True
    ((ring,),) = mask_polygons(mask)
    expected = {(3, 2.5), (3.5, 2), (8.5, 2), (9, 2.5), (9, 4.5), (8.5, 5), (3.5, 5), (3, 4.5)}
    assert {(float(x), float(y)) for x, y in ring} == expected
    assert len(ring) == 8


def test_geojson_rings_are_closed_and_wind_as_rfc_7946_says() -> None:
    mask = np.zeros((9, 9), np.bool_)
    mask[1:8, 1:8] = True
    mask[3:5, 3:5] = False
    ((exterior, hole),) = geojson_coordinates(mask_polygons(mask))
    assert exterior[0].tolist() == exterior[-1].tolist()
    assert hole[0].tolist() == hole[-1].tolist()

    def shoelace(ring: Ring) -> float:
        return sum(a[0] * b[1] - b[0] * a[1] for a, b in pairwise(ring))

    assert shoelace(exterior) > 0 > shoelace(hole)


def on_canvas(mask: BoolArray, around: Placed) -> BoolArray:
    return np.pad(mask, (around[:2], around[2:]))


@given(masks, placed)
@settings(max_examples=300, deadline=None)
def test_the_part_that_is_decoded_is_the_mask_and_no_larger(
    mask: BoolArray, around: Placed
) -> None:
    whole = on_canvas(mask, around)
    rle = encode_rle(whole)
    decoded = coco.decode({"size": list(rle.size), "counts": rle.counts})
    assert (decode_rle(rle) == decoded).all()
    part, x, y = decode_part(rle)
    assert (x, y, part.shape[1], part.shape[0]) == rle_bbox(rle)
    assert (part == whole[y : y + part.shape[0], x : x + part.shape[1]]).all()


@given(masks, placed, st.data())
@settings(max_examples=100, deadline=None)
def test_empty_runs_of_a_client_change_nothing(
    mask: BoolArray, around: Placed, data: st.DataObject
) -> None:
    whole = on_canvas(mask, around)
    pixels = whole.ravel(order="F")
    edges = [0, *np.flatnonzero(np.diff(pixels, prepend=False)).tolist(), pixels.size]
    counts = np.diff(edges).tolist()
    for _ in range(data.draw(st.integers(0, 3))):
        at = data.draw(st.integers(0, len(counts) - 1))
        split = data.draw(st.integers(0, counts[at]))
        counts[at : at + 1] = [split, 0, counts[at] - split]
    parsed = parse_rle((whole.shape[0], whole.shape[1]), counts)
    assert (decode_rle(parsed) == whole).all()
    assert changes_of(parsed).tolist() == changes_of(encode_rle(whole)).tolist()
    part, x, y = decode_part(parsed)
    assert (part.any(), part.sum()) == (whole.any(), whole.sum())
    assert (part == whole[y : y + part.shape[0], x : x + part.shape[1]]).all()


@given(masks, placed)
@settings(max_examples=200, deadline=None)
def test_files_of_a_mask_are_those_of_its_whole_image(mask: BoolArray, around: Placed) -> None:
    whole = on_canvas(mask, around)
    rle = encode_rle(whole)
    parts = rle_polygons(rle)
    assert (rasterised(parts, *whole.shape) == whole).all()
    # Parts of 4 neighbours; so what is outside, the image's surroundings too, has 8.
    assert len(parts) == label(whole)[1]
    outside = label(np.pad(~whole, 1, constant_values=True), np.ones((3, 3)))[1]
    assert sum(len(part) - 1 for part in parts) == outside - 1
    with Image.open(io.BytesIO(mask_png(rle))) as image:
        assert (image.mode, image.size) == ("L", whole.shape[::-1])
        assert (np.asarray(image) == whole * np.uint8(255)).all()
    found = Mask(rle=rle, score=0.5, stability_score=0.25, bbox=rle_bbox(rle), area=1)
    with np.load(io.BytesIO(masks_npz([found] * 2, rle.size)), allow_pickle=False) as npz:
        assert (npz["masks"] == np.stack([whole] * 2)).all()


@pytest.mark.parametrize("shape", [(600, 1000), (1, 300_000), (300_000, 1), (3, 300_000)])
@pytest.mark.parametrize("holds", ["noise", "nothing", "all", "a part"])
def test_images_of_more_than_one_piece(shape: tuple[int, int], holds: str) -> None:
    rng = np.random.default_rng(7)
    whole = np.zeros(shape, np.bool_) if holds != "noise" else rng.random(shape) < 0.1
    if holds == "all":
        whole[:] = True
    elif holds == "a part":
        whole[shape[0] // 3 : shape[0] // 3 + 70, shape[1] // 2 : shape[1] // 2 + 70] = True
    rle = encode_rle(whole)
    with Image.open(io.BytesIO(mask_png(rle))) as image:
        assert (np.asarray(image) == whole * np.uint8(255)).all()
    found = Mask(rle=rle, score=0.5, stability_score=0.25, bbox=rle_bbox(rle), area=1)
    with np.load(io.BytesIO(masks_npz([found, found], rle.size)), allow_pickle=False) as npz:
        assert (npz["masks"] == whole).all()


def test_no_format_makes_an_array_of_the_image() -> None:
    """Of 400 megapixels, of which the mask has 100 x 100 pixels."""
    size = (20_000, 20_000)
    rle, bbox, area = encode_part(disk(100, 40), 19_800, 19_900, size)
    found = Mask(rle=rle, score=0.5, stability_score=0.25, bbox=bbox, area=area)
    tracemalloc.start()
    try:
        assert len(rle_polygons(rle)) == 1
        mask_png(rle)
        masks_npz([found], size)
        assert tracemalloc.get_traced_memory()[1] < 40 * 2**20
    finally:
        tracemalloc.stop()


def disk(side: int, radius: float) -> BoolArray:
    y, x = np.mgrid[:side, :side] - side / 2
    return np.asarray(x * x + y * y <= radius * radius)


def test_no_polygons_of_an_empty_mask() -> None:
    assert mask_polygons(np.zeros((5, 5), np.bool_)) == []
    assert mask_polygons(np.zeros((0, 5), np.bool_)) == []


def random_boxes(
    rng: np.random.Generator, n: int, dtype: type
) -> tuple[NDArray[Any], NDArray[Any]]:
    corner = rng.integers(0, 40, (n, 2))
    boxes: NDArray[Any] = np.hstack([corner, corner + rng.integers(0, 30, (n, 2))]).astype(dtype)
    # Few distinct scores: most are tied.
    return boxes, (rng.integers(0, 5, n) / 5).astype(dtype)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("threshold", [0.0, 0.3, 0.5, 0.7, 1.0])
@pytest.mark.parametrize("n", [0, 1, 200])
def test_nms_is_that_of_torchvision(n: int, threshold: float, dtype: type) -> None:
    for seed in range(5):
        boxes, scores = random_boxes(np.random.default_rng(seed), n, dtype)
        expected = nms(torch.from_numpy(boxes), torch.from_numpy(scores), threshold)
        assert box_nms(boxes, scores, threshold).tolist() == expected.tolist()


def test_nms_compares_in_full_precision_as_torchvision_does() -> None:
    # IoU 7/10 in float32 lies just below 0.7 in float64, and is equal to float32(0.7).
    boxes = np.array([[0, 0, 10, 1], [0, 0, 7, 1], [0, 0, 3, 1]], np.float32)
    scores = np.array([0.9, 0.8, 0.7], np.float32)
    for threshold in (0.7, 0.3, 0.1, float(np.float32(0.3)), 3 / 7):
        expected = nms(torch.from_numpy(boxes), torch.from_numpy(scores), threshold).tolist()
        assert box_nms(boxes, scores, threshold).tolist() == expected


@given(masks, st.integers(0, 3), st.integers(0, 3), st.integers(0, 3), st.integers(0, 3))
def test_a_part_is_encoded_as_the_whole_image(
    mask: BoolArray, left: int, top: int, right: int, bottom: int
) -> None:
    """Byte for byte COCO's, with and without room around the part on each side."""
    whole = np.pad(mask, ((top, bottom), (left, right)))
    rle, bbox, area = encode_part(mask.T.copy(), left, top, (whole.shape[0], whole.shape[1]))
    assert rle == encode_rle(whole)
    assert (bbox, area) == (rle_bbox(rle), whole.sum())


@given(masks, st.sampled_from([0, 1, 2, 5, 1000]), st.sampled_from(["holes", "islands"]))
@settings(max_examples=150, deadline=None)
def test_small_regions_are_removed_as_meta_does(mask: BoolArray, area: int, mode: str) -> None:
    expected, expected_changed = amg.remove_small_regions(mask, area, mode)
    result, changed = remove_small_regions(mask, area, mode)  # type: ignore[arg-type]
    assert changed == expected_changed
    assert result.dtype == np.bool_
    assert (result == expected).all()


def test_a_crop_is_placed_in_the_image() -> None:
    crop = disk(12, 4)
    placed = decode_rle(rle_in_canvas(encode_rle(crop), x=7, y=3, height=20, width=30))
    assert placed.shape == (20, 30)
    assert (placed[3:15, 7:19] == crop).all()
    assert placed.sum() == crop.sum()
    for x, y in ((-1, 0), (0, -1), (19, 0), (0, 9)):
        with pytest.raises(ValueError, match="canvas"):
            rle_in_canvas(encode_rle(crop), x=x, y=y, height=20, width=30)


def test_png_holds_the_mask() -> None:
    mask = disk(31, 9)
    with Image.open(io.BytesIO(mask_png(encode_rle(mask)))) as image:
        assert image.mode == "L"
        assert set(np.unique(np.asarray(image.convert("L")))) == {0, 255}
        assert ((np.asarray(image.convert("L")) == 255) == mask).all()


def test_npz_is_read_without_pickle() -> None:
    arrays_in = [disk(20, r)[:15] for r in (2, 5, 8)]
    found = [
        Mask(rle=encode_rle(a), score=0.5, stability_score=0.25, bbox=(1, 2, 3, 4), area=7)
        for a in arrays_in
    ]
    data = masks_npz(found, (15, 20), prompt_index=np.array([0, 0, 1]))
    with np.load(io.BytesIO(data), allow_pickle=False) as npz:
        assert npz["masks"].dtype == np.bool_
        assert (npz["masks"] == np.stack(arrays_in)).all()
        assert npz["scores"].tolist() == [0.5] * 3
        assert npz["stability_scores"].tolist() == [0.25] * 3
        assert npz["bboxes"].tolist() == [[1, 2, 3, 4]] * 3
        assert npz["areas"].tolist() == [7] * 3
        assert npz["prompt_index"].tolist() == [0, 0, 1]
    with np.load(io.BytesIO(masks_npz([], (15, 20))), allow_pickle=False) as npz:
        assert npz["masks"].shape == (0, 15, 20)
        assert npz["bboxes"].shape == (0, 4)
