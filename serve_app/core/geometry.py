"""Boxes and masks: extent, intersection over union (IoU), non-maximum suppression (NMS).

Boxes are ``(x0, y0, x1, y1)`` in pixels.  Pixel ``j`` spans ``[j, j + 1)``, so the right and lower
edges of a box around a mask lie after its last pixel.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from serve_app.core.types import BoolArray, Mask

ResizeMode: TypeAlias = Literal["pad", "stretch"]
"""How an image becomes a model's square input.

``pad``: the longer side is scaled to the square's, the rest is padding below or at the right.
``stretch``: both sides are scaled to the square's.
"""


def tight_box(mask: BoolArray) -> tuple[int, int, int, int]:
    """The smallest box ``(x0, y0, x1, y1)`` around a ``(H, W)`` mask; zeros if it is empty."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not rows.size:
        return 0, 0, 0, 0
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def mask_iou(a: BoolArray, b: BoolArray) -> float:
    """IoU of two masks of the same shape, 0-1; 1 if both are empty."""
    union = np.logical_or(a, b).sum()
    return float(np.logical_and(a, b).sum() / union) if union else 1.0


def box_iou(boxes: NDArray[Any], box: NDArray[Any]) -> NDArray[Any]:
    """IoU of each of ``(N, 4)`` boxes with one ``(4,)`` box, in the precision of the inputs.

    Returns:
        ``(N,)``; NaN where both boxes are empty.
    """
    x0, y0, x1, y1 = boxes.T
    width = np.minimum(x1, box[2]) - np.maximum(x0, box[0])
    height = np.minimum(y1, box[3]) - np.maximum(y0, box[1])
    overlap = width.clip(min=0) * height.clip(min=0)
    area = (box[2] - box[0]) * (box[3] - box[1])
    with np.errstate(divide="ignore", invalid="ignore"):
        iou: NDArray[Any] = overlap / ((x1 - x0) * (y1 - y0) + area - overlap)
    return iou


def box_nms(
    boxes_xyxy: NDArray[Any], scores: NDArray[Any], threshold: float, most: int | None = None
) -> NDArray[np.int64]:
    """Greedy non-maximum suppression, with the same result as ``torchvision.ops.nms``.

    Args:
        boxes_xyxy: ``(N, 4)`` boxes, any float dtype.
        scores: ``(N,)``; of equal scores the earlier box wins.
        threshold: a box is dropped if its IoU with a kept one is greater than this.
        most: stop after this many boxes; None: keep all.

    Returns:
        Indices of the kept boxes, best first.
    """
    order = np.argsort(-scores, kind="stable")
    # One row for each coordinate: columns of neighbouring numbers.
    boxes = np.ascontiguousarray(boxes_xyxy[order].T)
    # As a numpy scalar: a Python float would be rounded to the boxes' precision first.
    limit = np.float64(threshold)
    kept: list[np.int64] = []
    while len(order) and len(kept) != most:
        kept.append(order[0])
        best, order, boxes = boxes[:, 0], order[1:], boxes[:, 1:]
        dropped = box_iou(boxes.T, best) > limit
        if dropped.any():
            order, boxes = order[~dropped], boxes[:, ~dropped]
    return np.array(kept, np.int64)


def mask_nms(
    masks: Sequence[Mask], threshold: float, scores: NDArray[Any] | None = None
) -> NDArray[np.int64]:
    """`box_nms` of the masks' boxes, by predicted IoU unless other scores are given."""
    boxes = np.array([mask.bbox for mask in masks], np.float64).reshape(-1, 4)
    # segment_anything's boxes end at the last pixel, not after it; for equal results so do these.
    boxes[:, 2:] += boxes[:, :2] - 1
    if scores is None:
        scores = np.array([mask.score for mask in masks])
    return box_nms(boxes, scores, threshold)
