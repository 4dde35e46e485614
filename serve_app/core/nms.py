"""Suppression of duplicates: of boxes that overlap, the one with the best score stays."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from serve_app.core.types import Mask


def box_nms(boxes_xyxy: NDArray[Any], scores: NDArray[Any], threshold: float) -> NDArray[np.int64]:
    """Greedy non-maximum suppression, answer for answer that of ``torchvision.ops.nms``.

    Args:
        boxes_xyxy: ``(N, 4)`` boxes ``(x0, y0, x1, y1)``, any float dtype.
        scores: ``(N,)``; of equal scores the earlier box wins.
        threshold: a box is dropped if its IoU with a kept one is greater than this.

    Returns:
        Indices of the boxes kept, best first.
    """
    order = np.argsort(-scores, kind="stable")
    boxes = boxes_xyxy[order]
    x0, y0, x1, y1 = boxes.T
    areas = (x1 - x0) * (y1 - y0)
    # As a numpy scalar: a Python float would be rounded to the boxes' precision first.
    limit = np.float64(threshold)
    alive = np.ones(len(order), np.bool_)
    for i in range(len(order)):
        if not alive[i]:
            continue
        rest = i + 1 + np.flatnonzero(alive[i + 1 :])
        width = np.minimum(x1[i], x1[rest]) - np.maximum(x0[i], x0[rest])
        height = np.minimum(y1[i], y1[rest]) - np.maximum(y0[i], y0[rest])
        overlap = width.clip(min=0) * height.clip(min=0)
        with np.errstate(divide="ignore", invalid="ignore"):
            iou = overlap / (areas[i] + areas[rest] - overlap)
        alive[rest[iou > limit]] = False
    return order[alive].astype(np.int64)


def mask_nms(
    masks: Sequence[Mask], threshold: float, scores: NDArray[Any] | None = None
) -> NDArray[np.int64]:
    """`box_nms` of masks, by their predicted IoU unless other scores are given."""
    boxes = np.array([mask.bbox for mask in masks], np.float64).reshape(-1, 4)
    # Meta's boxes end at the last pixel, not behind it; so do these, to merge alike.
    boxes[:, 2:] += boxes[:, :2] - 1
    if scores is None:
        scores = np.array([mask.score for mask in masks])
    return box_nms(boxes, scores, threshold)
