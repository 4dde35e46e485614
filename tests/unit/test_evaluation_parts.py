from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from serve_app.core.geometry import tight_box
from serve_app.core.rle import encode_rle
from serve_app.core.types import (
    BoolArray,
)
from serve_tools.evaluation.metrics import (
    cluster_mean,
    covered_by,
    iou_matrix,
    match_greedily,
    size_of,
)
from serve_tools.evaluation.prompts import deepest_point

from .evaluation_scenes import (
    SIDE,
    rectangle,
)

masks_of_any_shape = st.tuples(st.integers(1, 20), st.integers(1, 20)).flatmap(
    lambda shape: arrays(np.bool_, shape)
)


class TestPrompts:
    def test_point_of_a_c_shape_lies_inside_it(self) -> None:
        c = rectangle(20, 20, 100, 100) & ~rectangle(40, 40, 100, 80)
        x, y = deepest_point(c)
        centroid = np.argwhere(c).mean(axis=0)
        assert not c[int(centroid[0]), int(centroid[1])], "else the test shows nothing"
        assert c[int(y), int(x)]

    def test_point_of_a_long_bar_is_its_middle(self) -> None:
        assert deepest_point(rectangle(10, 50, 101, 61)) == (55.5, 55.5)

    def test_border_of_the_image_counts_as_outside(self) -> None:
        assert deepest_point(rectangle(0, 0, 21, SIDE)) == pytest.approx((10.5, 60), abs=0.51)

    def test_a_single_pixel(self) -> None:
        one = rectangle(7, 3, 8, 4)
        assert deepest_point(one) == (7.5, 3.5)
        assert tight_box(one) == (7, 3, 8, 4)

    @given(masks_of_any_shape.filter(lambda m: m.any()))
    def test_point_is_as_deep_as_any(self, mask: BoolArray) -> None:
        x, y = deepest_point(mask)
        outside = np.argwhere(~np.pad(mask, 1)) - 1
        rows = np.argwhere(mask)
        depth = np.sqrt(((rows[:, None] - outside[None]) ** 2).sum(-1)).min(1)
        own = np.sqrt(((np.array([y, x]) - 0.5 - outside) ** 2).sum(-1)).min()
        assert mask[int(y), int(x)]
        assert own == pytest.approx(depth.max(), abs=1e-3)

    @given(masks_of_any_shape.filter(lambda m: m.any()))
    def test_box_is_tight(self, mask: BoolArray) -> None:
        x0, y0, x1, y1 = tight_box(mask)
        assert mask[y0:y1, x0:x1].sum() == mask.sum()
        for edge in (mask[y0, :], mask[y1 - 1, :], mask[:, x0], mask[:, x1 - 1]):
            assert edge.any()


class TestMetrics:
    @given(st.data())
    def test_iou_is_exact(self, data: st.DataObject) -> None:
        shape = data.draw(st.tuples(st.integers(1, 12), st.integers(1, 12)))
        a, b = (data.draw(arrays(np.bool_, shape)) for _ in range(2))
        union = (a | b).sum()
        expected = (a & b).sum() / union if union else 0.0
        assert iou_matrix([encode_rle(a)], [encode_rle(b)])[0, 0] == pytest.approx(expected)

    def test_iou_of_nothing(self) -> None:
        one = encode_rle(rectangle(0, 0, 3, 3))
        assert iou_matrix([], [one]).shape == (0, 1)
        assert covered_by([one], []).shape == (1, 0)

    def test_covered_is_a_share_of_the_mask(self) -> None:
        mask, region = rectangle(0, 0, 10, 10), rectangle(5, 0, 100, 100)
        assert covered_by([encode_rle(mask)], [encode_rle(region)])[0, 0] == 0.5

    def test_sizes_are_those_of_coco(self) -> None:
        areas = (1, 1023, 1024, 9215, 9216)
        assert [size_of(a) for a in areas] == ["small", "small", "medium", "medium", "large"]

    def test_matching_takes_the_best_pair_first_and_each_once(self) -> None:
        iou = np.array([[0.6, 0.9], [0.5, 0.8], [0.0, 0.0]])
        assert match_greedily(iou).tolist() == [1, 0]
        assert match_greedily(np.zeros((2, 1))).tolist() == [-1]
        assert match_greedily(np.zeros((0, 2))).tolist() == [-1, -1]

    def test_mean_counts_items_and_images(self) -> None:
        estimate = cluster_mean([1, 0, 0, 0], [7, 7, 9, 9], seed=0)
        assert estimate is not None
        assert (estimate.mean, estimate.items, estimate.images) == (0.25, 4, 2)
        assert (estimate.low, estimate.high) == (0.0, 0.5)

    def test_no_interval_from_one_image_and_nothing_from_none(self) -> None:
        estimate = cluster_mean([0.2, 0.8], [1, 1], seed=0)
        assert estimate is not None
        assert (estimate.low, estimate.high) == (None, None)
        assert cluster_mean([], [], seed=0) is None

    def test_same_seed_same_interval(self) -> None:
        values, images = np.random.default_rng(0).random(50), np.arange(50) // 5
        first, again, other = (cluster_mean(values, images, seed=s) for s in (1, 1, 2))
        assert first == again
        assert first != other

    def test_interval_covers_the_truth_when_objects_of_an_image_are_alike(self) -> None:
        """95 % intervals must cover about 95 %; those over objects would cover about a third."""
        rng = np.random.default_rng(5)
        covered, naive = 0, 0
        images = np.repeat(np.arange(40), 10)
        for trial in range(200):
            values = 0.7 + rng.normal(0, 0.1, 40)[images] + rng.normal(0, 0.02, 400)
            estimate = cluster_mean(values, images, seed=trial, resamples=400)
            assert estimate is not None
            assert estimate.low is not None
            assert estimate.high is not None
            covered += estimate.low <= 0.7 <= estimate.high
            naive += abs(values.mean() - 0.7) <= 1.96 * values.std() / np.sqrt(400)
        assert naive < 120, "else the test shows nothing"
        assert 178 <= covered <= 199
