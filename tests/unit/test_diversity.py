"""Which points of a grid are asked at: on embeddings whose regions are known."""

from __future__ import annotations

import numpy as np
import pytest

from serve_app.core.geometry import ResizeMode
from serve_app.core.inference import Embedding
from serve_app.core.types import Float32Array
from serve_app.embeddings.diversity import MIN_DISTANCE, farthest_point_sampling


def _embedding(regions: Float32Array, height: int, width: int) -> Embedding:
    """One direction of the feature space for each value of ``(h, w)`` regions."""
    directions = np.eye(int(regions.max()) + 1, dtype=np.float32) * 3
    image_embed = directions[regions.astype(int)].transpose(2, 0, 1)
    return Embedding({"image_embed": image_embed}, height=height, width=width)


def _grid(side: int, height: int, width: int) -> Float32Array:
    x, y = np.meshgrid((np.arange(side) + 0.5) / side, (np.arange(side) + 0.5) / side)
    return np.stack([x.ravel() * width, y.ravel() * height], axis=1).astype(np.float32)


def test_each_region_is_asked_once_however_large() -> None:
    regions = np.zeros((16, 16), np.float32)
    regions[0:2, 0:2] = 1
    regions[8:12, 8:16] = 2
    points = _grid(8, 100, 100)
    chosen = farthest_point_sampling(_embedding(regions, 100, 100), points, 64, "pad")
    cells = (points[chosen] // (100 / 16)).astype(int)
    assert sorted(regions[y, x] for x, y in cells) == [0, 1, 2]
    assert chosen == sorted(chosen)


def test_no_more_points_than_allowed_and_the_most_different_first() -> None:
    rng = np.random.default_rng(0)
    points = _grid(8, 50, 80)
    noise = rng.normal(size=(32, 16, 16)).astype(np.float32)
    embedding = Embedding({"image_embed": noise}, height=50, width=80)
    assert len(farthest_point_sampling(embedding, points, 10, "pad")) == 10
    # All noise differs: every point is asked if there is room.
    assert farthest_point_sampling(embedding, points, 1000, "pad") == list(range(64))
    few = farthest_point_sampling(embedding, points, 9, "pad")
    assert set(few) < set(farthest_point_sampling(embedding, points, 10, "pad"))


@pytest.mark.parametrize("resize_mode", ["pad", "stretch"])
def test_points_are_looked_up_where_the_model_sees_them(resize_mode: ResizeMode) -> None:
    """A wide image: padded it fills the upper half of the square, stretched all of it."""
    regions = np.zeros((16, 16), np.float32)
    regions[8:] = 1
    embedding = _embedding(regions, 50, 100)
    points = np.array([[50, 10], [50, 40]], np.float32)
    found = farthest_point_sampling(embedding, points, 9, resize_mode)
    assert len(found) == {"pad": 1, "stretch": 2}[resize_mode]


def test_features_that_are_nearly_alike_count_as_one() -> None:
    for distance, expected in ((0.8 * MIN_DISTANCE, 1), (1.2 * MIN_DISTANCE, 2)):
        angle = 2 * np.arcsin(distance / 2)
        features = np.array([[1, np.cos(angle)], [0, np.sin(angle)]], np.float32)
        embedding = Embedding({"image_embed": features[:, None]}, height=2, width=2)
        points = np.array([[0.5, 1], [1.5, 1]], np.float32)
        assert len(farthest_point_sampling(embedding, points, 9, "stretch")) == expected


def test_blank_and_half_precision_embeddings_are_no_trouble() -> None:
    blank = Embedding({"image_embed": np.zeros((8, 4, 4), np.float16)}, height=9, width=9)
    assert len(farthest_point_sampling(blank, _grid(3, 9, 9), 9, "pad")) == 1
