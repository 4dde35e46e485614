"""Overlaps, matching, sampling, and means with confidence intervals."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pycocotools import mask as coco

from serve_app.core.rle import Rle

SIZES = ("all", "small", "medium", "large")
RESAMPLES = 2000
_BLOCK = 4_000_000  # resampling weights in memory at once


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean over items, with its 95 % interval where one can be given.

    Attributes:
        mean: of all items, each counted once.
        low, high: the interval's ends; None with fewer than two images.
        items, images: how many there were.
    """

    mean: float
    low: float | None
    high: float | None
    items: int
    images: int


def size_of(area: int) -> str:
    """COCO's size class of an object of ``area`` pixels: below 32², below 96², above."""
    return "small" if area < 32**2 else "medium" if area < 96**2 else "large"


def iou_matrix(masks: Sequence[Rle], objects: Sequence[Rle]) -> NDArray[np.float64]:
    """IoU of each mask with each object, ``(n_masks, n_objects)``, exact to the pixel."""
    return _overlaps(masks, objects, crowd=False)


def covered_by(masks: Sequence[Rle], regions: Sequence[Rle]) -> NDArray[np.float64]:
    """Share of each mask that lies in each region, ``(n_masks, n_regions)``."""
    return _overlaps(masks, regions, crowd=True)


def sample_indices(total: int, most: int | None, seed: int | Sequence[int]) -> list[int]:
    """At most ``most`` of ``range(total)``, chosen at random without replacement, in order."""
    if most is None or total <= most:
        return list(range(total))
    chosen = np.random.default_rng(seed).choice(total, most, replace=False)
    return sorted(chosen.tolist())


def _overlaps(a: Sequence[Rle], b: Sequence[Rle], *, crowd: bool) -> NDArray[np.float64]:
    if not a or not b:
        return np.zeros((len(a), len(b)))
    first, second = ([{"size": list(r.size), "counts": r.counts} for r in s] for s in (a, b))
    return np.asarray(coco.iou(first, second, [crowd] * len(b)), np.float64)


def match_greedily(iou: NDArray[np.float64]) -> NDArray[np.int64]:
    """Pair masks with objects one to one, the greatest IoU first.

    Args:
        iou: ``(n_masks, n_objects)``.

    Returns:
        ``(n_objects,)``: the mask of each object, -1 where none overlaps it.  Of equal pairs
        the first mask, then the first object, goes first.
    """
    partner = np.full(iou.shape[1], -1, np.int64)
    taken = np.zeros(iou.shape[0], bool)
    for flat in np.argsort(-iou, axis=None, kind="stable"):
        mask, target = divmod(int(flat), iou.shape[1])
        if iou[mask, target] <= 0:
            break
        if partner[target] < 0 and not taken[mask]:
            partner[target], taken[mask] = mask, True
    return partner


def cluster_mean(
    values: ArrayLike, images: ArrayLike, *, seed: int, resamples: int = RESAMPLES
) -> Estimate | None:
    """Mean of ``values`` with a percentile bootstrap interval over images; None of nothing.

    Objects of one image are correlated (same light, same blur), so whole images are resampled,
    with replacement: resampling objects would make the interval too narrow.  See Field and
    Welsh, "Bootstrapping clustered data", J. R. Statist. Soc. B 69 (2007).

    Args:
        values: ``(n,)`` one for each item.
        images: ``(n,)`` the image of each item, any integers.
    """
    value = np.asarray(values, np.float64)
    if value.size == 0:
        return None
    _, cluster = np.unique(np.asarray(images), return_inverse=True)
    count = np.bincount(cluster)
    total = np.bincount(cluster, weights=value)
    n = len(count)
    low = high = None
    if n >= 2:
        rng = np.random.default_rng(seed)
        block = max(1, _BLOCK // n)
        means = []
        for start in range(0, resamples, block):
            weights = rng.multinomial(n, np.full(n, 1 / n), min(block, resamples - start))
            means.append((weights @ total) / (weights @ count))
        low, high = (float(q) for q in np.quantile(np.concatenate(means), (0.025, 0.975)))
    return Estimate(float(value.mean()), low, high, int(value.size), n)
