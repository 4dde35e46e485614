"""Step 3, "everything": a grid of points over the image and its crops, filtered and merged.

Follows Meta's ``SamAutomaticMaskGenerator``: the same parameters, crops, filters and order.  What
is many times as much as the answer stays in the decoder's replica: of a crop's points, all of
which go there in one call, it tells those worth a prompt (in the fast mode), and of the whole
image's masks it sends back only those without a better duplicate.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from serve_app.core.geometry import mask_nms
from serve_app.core.ports import Proposer
from serve_app.core.rle import encode_rle, rle_area, rle_bbox
from serve_app.core.types import (
    DecodeOptions,
    Everything,
    EverythingMode,
    Mask,
    Prompt,
    Proposal,
    ProposalSource,
)
from serve_app.flow.session import Session
from serve_app.flow.timings import Timings
from serve_app.images.store import OpenImage
from serve_app.masks.operations import remove_small_regions, rle_in_canvas

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


class EverythingStep:
    """Runs one `Everything` task."""

    def __init__(self, proposer: Proposer, timings: Timings) -> None:
        self._proposer = proposer
        self._timings = timings

    async def run(self, image: OpenImage, task: Everything, session: Session) -> tuple[Mask, ...]:
        """All masks, best first."""
        layers = task.crop_n_layers if task.proposals is ProposalSource.GRID else 0
        crops = crops_of(image.width, image.height, layers, task.crop_overlap_ratio)
        found: list[Mask] = []
        for crop in crops:
            found += await self._run_crop(image, crop, task, session)
        with self._timings.stage("filter"):
            if len(crops) > 1:
                # Of duplicates between crops the one from the smaller crop is the sharper.
                sizes = np.array([m.crop_box[2] * m.crop_box[3] for m in found if m.crop_box])
                found = await asyncio.to_thread(
                    merge, found, task.crop_nms_thresh, 1.0 / np.maximum(sizes, 1)
                )
            if task.min_mask_region_area > 0:
                found = await asyncio.to_thread(_clean, found, task)
        return tuple(found)

    async def _run_crop(
        self, image: OpenImage, crop: Crop, task: Everything, session: Session
    ) -> list[Mask]:
        whole = crop.layer == 0
        part = image if whole else await image.crop(crop.x, crop.y, crop.width, crop.height)
        side = max(1, task.points_per_side // task.crop_n_points_downscale_factor**crop.layer)
        with self._timings.stage("propose"):
            proposals = await propose(self._proposer, part, task.proposals, side)
        thinned = task.mode == EverythingMode.FAST and task.proposals is ProposalSource.GRID
        options = DecodeOptions(
            # Meta's 0 switches a filter off; predicted IoUs may be a little below it.
            pred_iou_thresh=task.pred_iou_thresh or None,
            stability_score_thresh=task.stability_score_thresh or None,
            stability_score_offset=task.stability_score_offset,
            most_points=task.prompts_of_grid(side) if thinned else None,
            prompts_at_once=task.points_per_batch,
            # What a crop cuts off is no rival of the others; that is seen here alone.
            box_nms_thresh=task.box_nms_thresh if whole else None,
        )
        answers = await session.predict(part, [p.prompt for p in proposals], options)
        found = [
            (proposal, mask)
            for proposal, of_prompt in zip(proposals, answers, strict=True)
            for mask in of_prompt
        ]
        with self._timings.stage("filter"):
            return await asyncio.to_thread(_kept_of_crop, found, crop, image, task.box_nms_thresh)


async def propose(
    proposer: Proposer, image: OpenImage, source: ProposalSource, points_per_side: int
) -> tuple[Proposal, ...]:
    """Candidate regions; the image's pixels go only to sources that look at them."""
    pixels = None if source is ProposalSource.GRID else await image.pixels()
    return await proposer.propose(pixels, (image.width, image.height), source, points_per_side)


def _kept_of_crop(
    found: Sequence[tuple[Proposal, Mask]], crop: Crop, image: OpenImage, threshold: float
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


def _placed(mask: Mask, proposal: Proposal, crop: Crop, image: OpenImage) -> Mask:
    """A mask of a crop as a mask of the image, with the record of where it came from."""
    point = None
    prompt: Prompt = proposal.prompt
    if prompt.point_coords is not None:
        x, y = prompt.point_coords[0].tolist()
        point = (x + crop.x, y + crop.y)
    rle, bbox = mask.rle, mask.bbox
    if crop.layer:
        rle = rle_in_canvas(rle, crop.x, crop.y, image.height, image.width)
        bbox = (bbox[0] + crop.x, bbox[1] + crop.y, bbox[2], bbox[3])
    return replace(
        mask,
        rle=rle,
        bbox=bbox,
        point_coords=point,
        crop_box=(crop.x, crop.y, crop.width, crop.height),
        label=proposal.label,
    )


def _cut_off(mask: Mask, crop: Crop, image: OpenImage) -> bool:
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
