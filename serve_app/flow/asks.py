"""What a request asks of the router."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from serve_app.capabilities.everything.run import crops_of
from serve_app.core.measurements import QualityKind
from serve_app.core.types import (
    Everything,
    Prompt,
    ProposalSource,
    SegmentRequest,
    Task,
    TextQuery,
)
from serve_app.images.store import OpenImage
from serve_app.routing.types import RoutingQuery

_DETECTIONS = 10
"""Boxes that a detector usually proposes: how many is known only after it has run."""


def routing_query(
    request: SegmentRequest,
    image: OpenImage,
    text_source: ProposalSource | None = None,
    spent_ms: float = 0.0,
) -> RoutingQuery:
    """The request's hints, and how much work it is.

    Args:
        text_source: where a text's candidates come from; None: no text.
        spent_ms: since the request came in.
    """
    task = request.task
    if isinstance(task, TextQuery) and text_source is not None:
        task = replace(task, proposals=text_source)
    prompts = _prompts(task, image)
    return RoutingQuery(
        variant=request.variant,
        max_latency_ms=request.max_latency_ms,
        min_quality=request.min_quality,
        kind=_kind(task),
        mixed=not isinstance(task, TextQuery | Everything) and 0 < _boxes(task) < len(task),
        prompts=sum(prompts),
        images=len(prompts),
        spent_ms=spent_ms,
        filtered=isinstance(task, Everything),
    )


def _kind(task: Task) -> QualityKind:
    """The ledger's column that fits: by far most prompts of the task are of that kind."""
    if isinstance(task, TextQuery | Everything):
        return "point" if task.proposals is ProposalSource.GRID else "box"
    return "box" if _boxes(task) * 2 >= len(task) else "point"


def _boxes(prompts: Sequence[Prompt]) -> int:
    return sum(prompt.box is not None for prompt in prompts)


def _prompts(task: Task, image: OpenImage) -> list[int]:
    """How many prompts there will be, of the image and of each of its crops."""
    if isinstance(task, TextQuery):
        grid = task.proposals is ProposalSource.GRID
        return [task.points_per_side**2 if grid else _DETECTIONS]
    if not isinstance(task, Everything):
        return [len(task)]
    if task.proposals is not ProposalSource.GRID:
        return [_DETECTIONS]
    crops = crops_of(image.width, image.height, task.crop_n_layers, task.crop_overlap_ratio)
    shrink = task.crop_n_points_downscale_factor
    sides = [max(1, task.points_per_side // shrink**crop.layer) for crop in crops]
    return [task.prompts_of_grid(side) for side in sides]
