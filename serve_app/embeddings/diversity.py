"""Chooses points of a dense grid on different objects.

Most points of a grid are on the same object as another point and would produce the same masks.
The embedding predicts this: points with similar features have similar masks.
"""

from __future__ import annotations

import numpy as np

from serve_app.core.geometry import ResizeMode
from serve_app.core.inference import Embedding
from serve_app.core.types import Float32Array

MIN_DISTANCE = 0.2
"""Distance of two unit feature vectors below which a second prompt adds no new mask."""


def farthest_point_sampling(
    embedding: Embedding, points: Float32Array, most: int, resize_mode: ResizeMode
) -> list[int]:
    """Choose points by farthest-first traversal (Gonzalez 1985) of the features under them.

    The first one is the farthest from the mean; each further one is the farthest from those
    chosen, until all others are closer than `MIN_DISTANCE` to one of them.

    Args:
        embedding: with ``image_embed (C, h, w)``.
        points: ``(N, 2) float32``, ``(x, y)`` in image pixels.
        most: maximum number of points.
        resize_mode: how the model resizes images to its square input.

    Returns:
        Indices of the chosen points, ascending.
    """
    features = _features(embedding, points, resize_mode)
    lengths = (features**2).sum(axis=1)
    from_mean = np.linalg.norm(features - features.mean(axis=0), axis=1)
    place = int(from_mean.argmax())
    chosen: list[int] = []
    distance = np.full(len(points), np.inf, np.float32)
    while len(chosen) < min(most, len(points)) and distance[place] > MIN_DISTANCE**2:
        chosen.append(place)
        squared = lengths + lengths[place] - 2 * (features @ features[place])
        distance = np.minimum(distance, squared)
        distance[place] = 0
        place = int(distance.argmax())
    return sorted(chosen)


def _features(embedding: Embedding, points: Float32Array, resize_mode: ResizeMode) -> Float32Array:
    """``(N, C)`` unit vectors: the embedding under each point, bilinear between its cells."""
    grid = np.asarray(embedding.tensors["image_embed"], np.float32)
    rows, columns = grid.shape[1:]
    width, height = embedding.width, embedding.height
    if resize_mode == "pad":
        width = height = max(width, height)
    x = np.clip(points[:, 0] * (columns / width) - 0.5, 0, columns - 1)
    y = np.clip(points[:, 1] * (rows / height) - 0.5, 0, rows - 1)
    left, top = np.floor(x).astype(np.int64), np.floor(y).astype(np.int64)
    right, bottom = np.minimum(left + 1, columns - 1), np.minimum(top + 1, rows - 1)
    u, v = (x - left).astype(np.float32), (y - top).astype(np.float32)
    upper = grid[:, top, left] * (1 - u) + grid[:, top, right] * u
    lower = grid[:, bottom, left] * (1 - u) + grid[:, bottom, right] * u
    features = (upper * (1 - v) + lower * v).T
    length = np.linalg.norm(features, axis=1, keepdims=True)
    unit: Float32Array = features / np.maximum(length, np.finfo(np.float32).tiny)
    return unit
