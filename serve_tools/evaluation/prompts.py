"""Prompts made from a ground-truth mask, as a careful user would give them."""

from __future__ import annotations

import cv2
import numpy as np

from serve_app.core.geometry import tight_box
from serve_app.core.types import BoolArray, Prompt
from serve_tools.evaluation.kinds import PromptKind


def deepest_point(mask: BoolArray) -> tuple[float, float]:
    """The centre ``(x, y)`` of the pixel farthest from the outside of a ``(H, W)`` mask.

    Distances are exact Euclidean ones to the nearest background pixel; what lies beyond the
    image's border counts as background.  Of equally deep pixels the one nearest the object's
    centroid is taken, then the uppermost, then the leftmost.  Coordinates are those of this
    project, in which pixel ``j`` spans ``[j, j + 1)``: its centre is ``j + 0.5``.
    """
    x0, y0, x1, y1 = tight_box(mask)
    crop = np.pad(mask[y0:y1, x0:x1], 1).astype(np.uint8)
    depth = cv2.distanceTransform(crop, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)[1:-1, 1:-1]
    rows, columns = np.nonzero(depth >= depth.max() - 1e-4)
    ys, xs = np.nonzero(crop[1:-1, 1:-1])
    offset = (rows - ys.mean()) ** 2 + (columns - xs.mean()) ** 2
    # Rounded, so that the order of equal offsets does not hang on the last bit.
    nearest = int(np.argmin(np.round(offset, 6)))
    return x0 + int(columns[nearest]) + 0.5, y0 + int(rows[nearest]) + 0.5


def prompt_for(mask: BoolArray, kind: PromptKind, multimask: bool) -> Prompt:
    """The box or point prompt for a non-empty ``(H, W)`` ground-truth mask."""
    if kind is PromptKind.BOX:
        return Prompt(box=np.array(tight_box(mask), np.float32), multimask_output=multimask)
    return Prompt(
        point_coords=np.array([deepest_point(mask)], np.float32),
        point_labels=np.array([1], np.int32),
        multimask_output=multimask,
    )
