"""The request model of "everything"."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

from pydantic import Field

from serve_app.core.request import Task
from serve_app.core.types import ProposalSource
from serve_app.core.wire import AtMost, Share, Whole

_FAST_SHARE = 3 / 8
"""Maximum share of a grid's points that the fast mode prompts for."""

_FEW_POINTS = 256
"""In grids of up to this size the fast mode may prompt for all points, if the image needs it."""


class EverythingMode(StrEnum):
    """How thoroughly `Everything` looks."""

    FAST = "fast"
    EXACT = "exact"


class Everything(Task):
    """Segment everything, with the parameter names of Meta's `SamAutomaticMaskGenerator`.

    ``points_per_batch`` bounds how many prompts are in flight at once.  ``proposals`` and
    ``mode`` are additions to Meta's parameters.
    """

    name = "everything"
    gives_logits = False

    points_per_side: Annotated[Whole, Field(ge=1), AtMost("max_points_per_side")] = 32
    points_per_batch: Annotated[Whole, Field(ge=1, le=4096)] = 64
    pred_iou_thresh: Share = 0.88
    stability_score_thresh: Share = 0.95
    stability_score_offset: Annotated[float, Field(gt=0, le=100)] = 1.0
    box_nms_thresh: Share = 0.7
    crop_n_layers: Annotated[Whole, Field(ge=0), AtMost("max_crop_layers")] = 0
    crop_nms_thresh: Share = 0.7
    crop_overlap_ratio: Annotated[float, Field(ge=0, lt=1)] = 512 / 1500
    crop_n_points_downscale_factor: Annotated[Whole, Field(ge=1, le=64)] = 1
    min_mask_region_area: Annotated[Whole, Field(ge=0, le=2**31 - 1)] = 0
    proposals: Annotated[ProposalSource, Field(strict=False)] = Field(
        ProposalSource.GRID,
        description="`detector` or `contours`: candidate regions come from there, and the grid "
        "and crop parameters are not used",
    )
    mode: Annotated[EverythingMode, Field(strict=False)] = Field(
        EverythingMode.FAST,
        description="`exact` prompts at every point of the grid, as Meta's generator does; `fast` "
        "leaves out points under which the image looks as under another point, which would give "
        "the same masks again",
    )

    def prompts_of_grid(self, points_per_side: int) -> int:
        """The maximum number of points of a grid that are prompted for."""
        points = points_per_side * points_per_side
        if self.mode == EverythingMode.EXACT:
            return points
        return min(points, max(_FEW_POINTS, round(points * _FAST_SHARE)))
