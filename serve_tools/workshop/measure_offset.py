"""Whether a variant's masks lie beside the objects: mean IoU with the logits moved a little.

Run with ``python -m serve_tools.workshop.measure_offset --images DIR --annotations FILE``.  One
box prompt for each annotated object; its low-resolution logits are sampled at places moved by
parts of a cell (a 256th of the image's longer side), along one axis at a time.  A model without an
offset has its best mean IoU at 0.
"""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from serve_app.capabilities import Prompts, SegmentRequest
from serve_app.cli import text_table
from serve_app.cli.configuration import load_settings
from serve_app.core.ports import SegmentationService
from serve_app.core.rle import decode_rle
from serve_app.core.types import LOW_RES, Float32Array, Prompt
from serve_app.local import build_local_service
from serve_tools.evaluation.annotations import AnnotatedImage, load_dataset

SHIFTS = tuple(round(0.1 * step, 1) for step in range(-4, 5))
_LEAST_PIXELS, _LEAST_IOU = 50, 0.6
"""Objects of fewer pixels, or found worse than this, say nothing about a tenth of a cell."""

_PROMPTS = 32
"""Objects of one image at most: the average is over images of many kinds."""

Rows = NDArray[np.float64]


async def overlaps(
    service: SegmentationService, variant: str, image: AnnotatedImage
) -> AsyncIterator[Rows]:
    """IoU of an image's objects by axis and shift: ``(2, 9) float64`` each, y before x."""
    known = [o for o in image.objects if o.area >= _LEAST_PIXELS][:_PROMPTS]
    if not known:
        return
    truths = [decode_rle(o.rle).astype(bool) for o in known]
    prompts = tuple(Prompt(box=_tight(truth), multimask_output=False) for truth in truths)
    request = SegmentRequest(
        image=image.path.read_bytes(),
        task=Prompts(prompts=prompts),
        variant=variant,
        return_logits=True,
    )
    result = await service.segment(request)
    for truth, found in zip(truths, result.results, strict=True):
        logits = found.masks[0].low_res_logits
        if logits is None or _iou(logits, truth, 0, 0) < _LEAST_IOU:
            continue
        yield np.array(
            [
                [_iou(logits, truth, shift, 0) for shift in SHIFTS],
                [_iou(logits, truth, 0, shift) for shift in SHIFTS],
            ]
        )


def _iou(logits: NDArray[np.float16], truth: NDArray[np.bool_], down: float, right: float) -> float:
    """IoU of ``truth`` with the mask of logits sampled ``down`` and ``right`` cells further."""
    height, width = truth.shape
    cells = LOW_RES / max(height, width)
    rows, columns = _weights(height, cells, down), _weights(width, cells, right)
    mask = rows @ logits.astype(np.float32) @ columns.T > 0
    union = np.count_nonzero(mask | truth)
    return np.count_nonzero(mask & truth) / union if union else 0.0


def _weights(pixels: int, cells: float, shift: float) -> Float32Array:
    """``(pixels, 256)`` weights of linear interpolation at the pixels' centres."""
    at = np.clip((np.arange(pixels) + 0.5) * cells - 0.5 + shift, 0, LOW_RES - 1)
    weights: Float32Array = np.clip(1 - np.abs(at[:, None] - np.arange(LOW_RES)), 0, None)
    return weights.astype(np.float32)


def _tight(mask: NDArray[np.bool_]) -> Float32Array:
    rows, columns = (np.flatnonzero(mask.any(axis=axis)) for axis in (1, 0))
    return np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1], np.float32)


async def _measure(arguments: argparse.Namespace) -> None:
    (settings,) = load_settings(arguments.config)
    service = build_local_service(settings, [arguments.variant])
    dataset = load_dataset(arguments.images, arguments.annotations, limit=arguments.limit)
    found = [
        rows
        for image in dataset.images
        async for rows in overlaps(service, arguments.variant, image)
    ]
    if not found:
        raise SystemExit("no object was found well enough to measure an offset")
    print(table(np.array(found)))


def table(found: NDArray[np.float64]) -> str:
    """Mean change of IoU by shift, in 1e-4, with its standard error; ``found``: ``(N, 2, 9)``."""
    change = (found - found[:, :, [SHIFTS.index(0)]]) * 1e4
    errors = change.std(axis=0) / np.sqrt(len(found))
    cells = [
        [f"{mean:+.0f} ± {error:.0f}" for mean, error in zip(*axis, strict=True)]
        for axis in zip(change.mean(axis=0), errors, strict=True)
    ]
    rows = [(f"{shift:+.1f}", *pair) for shift, *pair in zip(SHIFTS, *cells, strict=True)]
    heading = ("cells", "up: change of IoU, 1e-4", "left: change of IoU, 1e-4")
    return f"{len(found)} objects\n{text_table(heading, rows)}"


def main() -> None:
    parser = argparse.ArgumentParser(description="Whether a variant's masks lie beside objects.")
    parser.add_argument("--images", type=Path, required=True, help="folder of the images")
    parser.add_argument("--annotations", type=Path, required=True, help="COCO JSON")
    parser.add_argument("--variant", default="accurate")
    parser.add_argument("--config", type=Path, help="default: configs/local.yaml")
    parser.add_argument("--limit", type=int, help="images at most, drawn at random")
    asyncio.run(_measure(parser.parse_args()))


if __name__ == "__main__":
    main()
