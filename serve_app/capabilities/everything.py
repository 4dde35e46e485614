"""Everything: a grid of points over the image and its crops, filtered and merged.

Follows Meta's ``SamAutomaticMaskGenerator``: the same parameters, crops, filters and order.
Intermediates much larger than the result stay on the decoder replica: all points of a crop go there
in one call, the replica selects those worth a prompt (in the fast mode), and of the whole image's
masks it returns only those without a better duplicate.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Annotated

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from serve_app.core.capability import Capability, Context, Cost, Image, Outcome
from serve_app.core.geometry import mask_nms
from serve_app.core.inference import DecodeOptions, Proposal
from serve_app.core.ports import TextScorer
from serve_app.core.request import Task
from serve_app.core.rle import encode_rle, rle_area, rle_bbox
from serve_app.core.types import Mask, PromptResult, ProposalSource
from serve_app.core.wire import AtMost, Share, Whole
from serve_app.masks.operations import remove_small_regions, rle_in_canvas

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


_DETECTIONS = 10
"""Boxes that a detector usually proposes; the number is known only after it has run."""

_EDGE_TOLERANCE = 20
"""A box this near to a crop's border, in pixels, is taken for cut off by it."""


@dataclass(frozen=True, slots=True)
class Crop:
    """A part of the image, ``(x, y, w, h)`` in pixels, and its layer (0: the whole)."""

    x: int
    y: int
    width: int
    height: int
    layer: int


def crops_of(width: int, height: int, layers: int, overlap_ratio: float) -> list[Crop]:
    """The whole image, then for each layer ``2^layer`` crops a side that overlap."""
    crops = [Crop(0, 0, width, height, 0)]
    for layer in range(1, layers + 1):
        n = 2**layer
        overlap = int(overlap_ratio * min(width, height) * (2 / n))
        w = math.ceil((overlap * (n - 1) + width) / n)
        h = math.ceil((overlap * (n - 1) + height) / n)
        for x in range(n):
            for y in range(n):
                x0, y0 = (w - overlap) * x, (h - overlap) * y
                part = Crop(x0, y0, min(w, width - x0), min(h, height - y0), layer)
                # An image of few pixels has no room for all crops.
                if part.width > 0 and part.height > 0:
                    crops.append(part)
    return crops


def _crops(task: Everything, image: Image) -> list[Crop]:
    layers = task.crop_n_layers if task.proposals is ProposalSource.GRID else 0
    return crops_of(image.width, image.height, layers, task.crop_overlap_ratio)


def _points_per_side(task: Everything, crop: Crop) -> int:
    shrink: int = task.crop_n_points_downscale_factor**crop.layer
    return max(1, task.points_per_side // shrink)


async def cost(task: Everything, image: Image, scorer: TextScorer | None) -> Cost:
    """The points of the grid, for the image and each of its crops."""
    if task.proposals is not ProposalSource.GRID:
        return Cost(prompts=(_DETECTIONS,), prompt_type="box", filtered=True)
    sides = [_points_per_side(task, crop) for crop in _crops(task, image)]
    return Cost(prompts=[task.prompts_of_grid(side) for side in sides], filtered=True)


async def run(task: Everything, context: Context) -> Outcome:
    """One result with all masks, best first."""
    crops = _crops(task, context.image)
    found: list[Mask] = []
    for crop in crops:
        found += await _run_crop(crop, task, context)
    with context.stage("filter"):
        if len(crops) > 1:
            # Of duplicates between crops the one from the smaller crop is the sharper.
            sizes = np.array([m.crop_box[2] * m.crop_box[3] for m in found if m.crop_box])
            found = await asyncio.to_thread(
                merge, found, task.crop_nms_thresh, 1.0 / np.maximum(sizes, 1)
            )
        if task.min_mask_region_area > 0:
            found = await asyncio.to_thread(_clean, found, task)
    return Outcome(results=(PromptResult(masks=tuple(found)),))


async def _run_crop(crop: Crop, task: Everything, context: Context) -> list[Mask]:
    whole = crop.layer == 0
    image = context.image
    part = image if whole else await image.crop(crop.x, crop.y, crop.width, crop.height)
    side = _points_per_side(task, crop)
    with context.stage("propose"):
        proposals = await context.propose(part, task.proposals, side)
    thinned = task.mode == EverythingMode.FAST and task.proposals is ProposalSource.GRID
    options = DecodeOptions(
        # Meta's 0 switches a filter off; predicted IoUs may be a little below it.
        pred_iou_thresh=task.pred_iou_thresh or None,
        stability_score_thresh=task.stability_score_thresh or None,
        stability_score_offset=task.stability_score_offset,
        most_points=task.prompts_of_grid(side) if thinned else None,
        prompts_at_once=task.points_per_batch,
        # Masks that a crop's border cuts off do not suppress others; only here are they known.
        box_nms_thresh=task.box_nms_thresh if whole else None,
    )
    by_prompt = await context.predict(part, [p.prompt for p in proposals], options)
    found = [
        (proposal, mask)
        for proposal, of_prompt in zip(proposals, by_prompt, strict=True)
        for mask in of_prompt
    ]
    with context.stage("filter"):
        return await asyncio.to_thread(_kept_of_crop, found, crop, image, task.box_nms_thresh)


def _kept_of_crop(
    found: Sequence[tuple[Proposal, Mask]], crop: Crop, image: Image, threshold: float
) -> list[Mask]:
    """A crop's masks in the image's frame, without duplicates and those that it cut off."""
    masks = [_placed(mask, proposal, crop, image) for proposal, mask in found]
    if crop.layer:
        masks = [mask for mask in masks if not _cut_off(mask, crop, image)]
    return merge(masks, threshold)


def merge(
    masks: Sequence[Mask], threshold: float, scores: NDArray[np.float64] | None = None
) -> list[Mask]:
    """Drop duplicates, keeping the one with the better score; best first."""
    return [masks[i] for i in mask_nms(masks, threshold, scores)]


def _placed(mask: Mask, proposal: Proposal, crop: Crop, image: Image) -> Mask:
    """A mask of a crop as a mask of the image, with the record of where it came from."""
    point = None
    prompt = proposal.prompt
    if prompt.point_coords is not None:
        x, y = prompt.point_coords[0].tolist()
        point = ((x + crop.x, y + crop.y),)
    rle, bbox = mask.rle, mask.bbox
    if crop.layer:
        rle = rle_in_canvas(rle, crop.x, crop.y, image.height, image.width)
        bbox = (bbox[0] + crop.x, bbox[1] + crop.y, bbox[2], bbox[3])
    return replace(
        mask,
        rle=rle,
        bbox=bbox,
        predicted_iou=mask.score,
        point_coords=point,
        crop_box=(crop.x, crop.y, crop.width, crop.height),
        label=proposal.label,
    )


def _cut_off(mask: Mask, crop: Crop, image: Image) -> bool:
    """Whether a mask touches a border of its crop that is not a border of the image."""
    x, y, w, h = mask.bbox
    edges = (
        (x, crop.x, 0),
        (y, crop.y, 0),
        (x + w - 1, crop.x + crop.width, image.width),
        (y + h - 1, crop.y + crop.height, image.height),
    )
    return any(
        abs(side - border) <= _EDGE_TOLERANCE and abs(side - end) > _EDGE_TOLERANCE
        for side, border, end in edges
    )


def _clean(masks: Sequence[Mask], task: Everything) -> list[Mask]:
    """Fill small holes, drop small islands, and merge again; untouched masks win."""
    cleaned: list[Mask] = []
    scores: list[float] = []
    for mask in masks:
        array, holes = remove_small_regions(mask.array, task.min_mask_region_area, "holes")
        array, islands = remove_small_regions(array, task.min_mask_region_area, "islands")
        if holes or islands:
            rle = encode_rle(array)
            mask = replace(mask, rle=rle, bbox=rle_bbox(rle), area=rle_area(rle))
        cleaned.append(mask)
        scores.append(0.0 if holes or islands else 1.0)
    return merge(cleaned, max(task.box_nms_thresh, task.crop_nms_thresh), np.array(scores))


CAPABILITY = Capability(task=Everything, run=run, cost=cost)
