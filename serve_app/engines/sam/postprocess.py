"""Converts low-resolution logits to full-size masks; shared by SAM and SAM 2.

The cost is proportional to the mask's own extent.  Every pixel of the full-size logits is a
weighted mean of a few low-resolution cells.  If all these cells are below the lowest threshold, the
pixel is outside the mask and is not computed.  Most masks are far smaller than their image.

A block of neighbouring pixels depends on few cells, so it is a small matrix product: too small for
BLAS to start threads, which would compete with the decoder's next pass for the cores.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from torch import Tensor

from serve_app.core.geometry import tight_box
from serve_app.core.inference import DecodeJob, DecodeOptions
from serve_app.core.rle import encode_part
from serve_app.core.types import BoolArray, Float32Array, Mask
from serve_app.engines.sam.frame import Frame

_PRODUCT = 1 << 18
"""Maximum multiplications of one matrix product that OpenBLAS runs in the calling thread only."""


def choose(
    scores: Sequence[float], single: Sequence[int], multi: Sequence[int], job: DecodeJob
) -> list[int]:
    """Select the masks of a prompt that are returned.

    Args:
        scores: predicted IoU of every mask of the model.
        single: the candidates for a single mask; the best of them is selected.
        multi: the candidates of ``multimask_output``.
        job: the prompt and its thresholds.

    Returns:
        Indices into ``scores``, in the model's order.
    """
    multimask, threshold = job.prompt.multimask_output, job.options.pred_iou_thresh
    chosen = multi if multimask else [max(single, key=lambda i: scores[i])]
    return [i for i in chosen if threshold is None or scores[i] > threshold]


def postprocess_masks(
    logits: Tensor, scores: Tensor, frame: Frame, options: DecodeOptions
) -> tuple[Mask, ...]:
    """Scale the selected masks of one prompt to the image's size and encode them.

    Args:
        logits: ``(M, 256, 256) float32`` low-resolution logits.
        scores: ``(M,)`` their predicted IoU.
        frame: the image's place in the model's square input.
        options: thresholds and what to return.
    """
    results = []
    for low_res, score in zip(logits.cpu().numpy(), scores.tolist(), strict=True):
        part = threshold_mask(low_res, frame, options.stability_score_offset)
        # IoU of the nested masks at both thresholds.  0 if both are empty, so that
        # stability_score_thresh drops an empty mask; segment_anything drops it as a NaN.
        stability = part.inner / max(part.outer, 1)
        threshold = options.stability_score_thresh
        if threshold is not None and stability < threshold:
            continue
        returned = frame.to_padded(low_res).astype(np.float16) if options.return_logits else None
        rle, bbox, area = encode_part(part.columns, part.x, part.y, (frame.height, frame.width))
        results.append(
            Mask(
                rle=rle,
                score=score,
                stability_score=stability,
                bbox=bbox,
                area=area,
                low_res_logits=returned,
            )
        )
    return tuple(results)


class _Axis:
    """Interpolation along one side of the image.

    Args:
        weights: ``(pixels, 256) float32``, of each cell in each pixel: in each row a few
            neighbouring ones, which sum to one.
    """

    def __init__(self, weights: Float32Array) -> None:
        self.weights = weights
        seen = weights != 0
        # The first and the last cell of each pixel, both ascending.
        self.first = seen.argmax(axis=1)
        last = seen.shape[1] - 1 - seen[:, ::-1].argmax(axis=1)
        # A weight may round to zero where those beside it do not.
        self.last = np.maximum.accumulate(last)

    def pixels(self, cells: BoolArray, axis: int) -> slice:
        """Pixels that depend on any of the ``(256, 256) bool`` cells, reduced over ``axis``."""
        wanted = np.flatnonzero(cells.any(axis=axis))
        if not wanted.size:
            return slice(0, 0)
        start = np.searchsorted(self.last, wanted[0], side="left")
        stop = np.searchsorted(self.first, wanted[-1], side="right")
        return slice(int(start), max(int(start), int(stop)))

    def cells(self, pixels: slice) -> slice:
        """All cells that these pixels depend on."""
        return slice(int(self.first[pixels.start]), int(self.last[pixels.stop - 1]) + 1)

    def blocks(self, pixels: slice, values: int) -> Iterator[slice]:
        """Split pixels so that each product with ``values`` columns is at most `_PRODUCT`."""
        cells = self.cells(pixels)
        density = (cells.stop - cells.start) / (pixels.stop - pixels.start)
        # n pixels depend on some n * density + 2 cells: solved for n.
        step = max(1, int((math.sqrt(1 + density * _PRODUCT / values) - 1) / density))
        for start in range(pixels.start, pixels.stop, step):
            yield slice(start, min(start + step, pixels.stop))

    def mean(self, values: Float32Array, pixels: slice, origin: int) -> Float32Array:
        """Weighted means of ``(cells, n)`` values, which start at cell ``origin``."""
        seen = self.cells(pixels)
        result: Float32Array = (
            self.weights[pixels, seen] @ values[seen.start - origin : seen.stop - origin]
        )
        return result


@lru_cache(maxsize=4)  # megabytes each, of large images
def _axes(frame: Frame) -> tuple[_Axis, _Axis]:
    rows, columns = frame.weights()
    return _Axis(rows.numpy()), _Axis(columns.numpy())


@dataclass(frozen=True, slots=True, eq=False)
class ThresholdedMask:
    """A full-size mask, as the part of the image that contains it.

    Attributes:
        columns: ``(w, h) bool``, transposed.
        x, y: the part's upper left pixel.
        inner, outer: number of pixels above the upper and the lower threshold.
    """

    columns: BoolArray
    x: int
    y: int
    inner: int
    outer: int

    @property
    def box(self) -> tuple[int, int, int, int]:
        """The smallest ``(x0, y0, x1, y1)`` around the mask; zeros if it is empty."""
        x0, y0, x1, y1 = tight_box(self.columns.T)
        if x1 == 0:
            return 0, 0, 0, 0
        return self.x + x0, self.y + y0, self.x + x1, self.y + y1


def threshold_mask(logits: Float32Array, frame: Frame, offset: float = 1.0) -> ThresholdedMask:
    """The mask ``logit > 0`` at the image's full size, and its area at ``+-offset``.

    Args:
        logits: ``(256, 256) float32``.
        frame: the image's place in the model's square input.
        offset: distance of the upper and lower threshold from 0; positive.
    """
    rows, columns = _axes(frame)
    inside = logits > -offset
    y, x = rows.pixels(inside, axis=1), columns.pixels(inside, axis=0)
    if y.start == y.stop or x.start == x.stop:
        return ThresholdedMask(np.zeros((0, 0), np.bool_), 0, 0, 0, 0)
    cell_rows, cell_columns = rows.cells(y), columns.cells(x)
    part = logits[cell_rows, cell_columns]
    rows_of = [rows.mean(part, block, cell_rows.start) for block in rows.blocks(y, part.shape[1])]
    interpolated = np.ascontiguousarray(np.concatenate(rows_of).T)
    mask = np.empty((x.stop - x.start, y.stop - y.start), np.bool_)
    inner = outer = 0
    for block in columns.blocks(x, mask.shape[1]):
        values = columns.mean(interpolated, block, cell_columns.start)
        np.greater(values, 0, out=mask[block.start - x.start : block.stop - x.start])
        inner += int(np.count_nonzero(values > offset))
        outer += int(np.count_nonzero(values > -offset))
    return ThresholdedMask(mask, x.start, y.start, inner, outer)
