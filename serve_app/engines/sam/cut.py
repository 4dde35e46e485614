"""Cuts a mask out of low-resolution logits, at the image's full size, as run lengths.

A pixel's logit is a weighted mean of a few neighbouring cells of the low-resolution logits.  Where
all these cells lie on the same side of a threshold, so does the pixel.  So columns of the image are
interpolated between columns of cells, and along each column pixels are computed only around the
cells at which it crosses a threshold: the boundary decides, not the area.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple, cast

import cv2
import numpy as np
from numpy.typing import NDArray

from serve_app.core.geometry import ResizeMode
from serve_app.core.rle import Ints, Rle, rle_of
from serve_app.core.types import LOW_RES, Float32Array
from serve_app.engines.sam.frame import IMAGE_SIZE, Frame
from serve_app.masks.compiled import compiled

_WORD = 8
"""Cells that are compared at once, as bytes of a 64-bit number."""


@dataclass(frozen=True, slots=True, eq=False)
class CutMask:
    """A mask of an image.

    Attributes:
        rle: the mask.
        bbox: ``(x, y, w, h)`` in pixels, zeros if it is empty.
        area: pixels of the mask.
        inner, outer: pixels above the upper and the lower threshold.
    """

    rle: Rle
    bbox: tuple[int, int, int, int]
    area: int
    inner: int
    outer: int


@dataclass(frozen=True, slots=True, eq=False)
class Taps:
    """Interpolation along one side of an image.

    Attributes:
        first: ``(pixels,) int64``, the first cell of each pixel, ascending.
        weights: ``(pixels, K) float32`` of the cells from there on, which sum to one.
    """

    first: Ints
    weights: Float32Array

    @classmethod
    def of(cls, pixels: int, inputs: int, resize_mode: ResizeMode) -> Taps:
        """One side of a frame.

        With ``pad``: bilinear to 1024, cropped to the image's part, bilinear to the image, as in
        `segment_anything`.  With ``stretch``: bilinear to the image in one step.
        """
        if resize_mode == "stretch":
            return cls._composed(_linear(pixels, LOW_RES), _linear(LOW_RES, LOW_RES))
        return cls._composed(_linear(pixels, inputs), _linear(IMAGE_SIZE, LOW_RES))

    @classmethod
    def _composed(cls, to_pixels: _Linear, to_inputs: _Linear) -> Taps:
        """Cells to inputs to pixels."""
        first = to_inputs.low[to_pixels.low]
        count = int((to_inputs.high[to_pixels.high] - first).max()) + 1
        first = np.minimum(first, LOW_RES - count)
        weights = np.zeros((len(first), count), np.float32)
        rows = np.arange(len(first))
        for inputs, share in (
            (to_pixels.low, 1 - to_pixels.share),
            (to_pixels.high, to_pixels.share),
        ):
            for cells, part in (
                (to_inputs.low, 1 - to_inputs.share),
                (to_inputs.high, to_inputs.share),
            ):
                weights[rows, cells[inputs] - first] += share * part[inputs]
        return cls(first, weights)


class _Linear(NamedTuple):
    """Linear interpolation along a side: ``low`` and ``high`` of it, by ``1 - share, share``."""

    low: Ints
    high: Ints
    share: Float32Array


def _linear(outputs: int, inputs: int) -> _Linear:
    """As ``torch.nn.functional.interpolate`` without ``align_corners`` does it."""
    if outputs == inputs:
        same = np.arange(outputs)
        return _Linear(same, same, np.zeros(outputs, np.float32))
    scale = np.float32(inputs) / np.float32(outputs)
    at = np.maximum(
        scale * (np.arange(outputs, dtype=np.float32) + np.float32(0.5)) - np.float32(0.5), 0
    )
    low = np.minimum(at.astype(np.int64), inputs - 1)
    share = np.clip(at - low.astype(np.float32), 0, 1)
    return _Linear(low, np.minimum(low + 1, inputs - 1), share)


@lru_cache(maxsize=64)  # sizes in use at once; 0.4 MB each at 64 megapixels
def _taps(frame: Frame) -> tuple[Taps, Taps]:
    return (
        Taps.of(frame.height, frame.input_height, frame.resize_mode),
        Taps.of(frame.width, frame.input_width, frame.resize_mode),
    )


def cut_mask(logits: Float32Array, frame: Frame, offset: float = 1.0) -> CutMask:
    """The mask ``logit > 0`` at the image's full size, and its area at ``+-offset``.

    Args:
        logits: ``(256, 256) float32``, finite.
        frame: the image's place in the model's square input.
        offset: distance of the upper and lower threshold from 0; positive.

    Raises:
        ValueError: logits of another shape or type.
    """
    if logits.shape != (LOW_RES, LOW_RES) or logits.dtype != np.float32:
        raise ValueError(f"logits must be ({LOW_RES}, {LOW_RES}) float32")
    above = logits > -offset
    if not above.any():
        empty = np.empty(0, np.int64)
        return CutMask(rle_of(empty, (frame.height, frame.width)), (0, 0, 0, 0), 0, 0, 0)
    rows, columns = _taps(frame)
    changes, areas, box = _cut(
        cast(Float32Array, cv2.transpose(logits)),
        np.asarray(above.any(axis=0)),
        np.flatnonzero(above.any(axis=1))[[0, -1]],
        rows.first,
        rows.weights,
        columns.first,
        columns.weights,
        np.float32(offset),
    )
    area, inner, outer = areas.tolist()
    x, y, w, h = box.tolist()
    return CutMask(rle_of(changes, (frame.height, frame.width)), (x, y, w, h), area, inner, outer)


def warm_up() -> None:
    """Compile what cuts masks, or load it: seconds that no request should take."""
    cut_mask(np.ones((LOW_RES, LOW_RES), np.float32), Frame.of(1, 1, "pad"))


@compiled
def _cut(
    cells: Float32Array,
    seen: NDArray[np.bool_],
    span: Ints,
    row_first: Ints,
    row_weights: Float32Array,
    column_first: Ints,
    column_weights: Float32Array,
    offset: np.float32,
) -> tuple[Ints, Ints, Ints]:
    """The changes of the mask along its columns; area, inner and outer pixels; the box.

    Args:
        cells: ``(256, 256)`` logits, transposed: the first index is the column.
        seen: ``(256,)``, columns with a cell above the lower threshold; there is one.
        span: the first and the last row with one.
    """
    side = cells.shape[1]
    height, width = len(row_first), len(column_first)
    row_taps, column_taps = row_weights.shape[1], column_weights.shape[1]
    zero = np.float32(0)
    changes = np.empty(4096, np.int64)
    areas, box = np.zeros(3, np.int64), np.zeros(4, np.int64)
    # Elsewhere no pixel depends on a cell above the lower threshold.
    low, high = max(span[0] - row_taps, 0), min(span[1] + 1 + row_taps, side)
    # Pixels by their first cell: those of cell i start at of_cell[i].
    of_cell = np.zeros(side + 1, np.int64)
    for y in range(height):
        of_cell[row_first[y] + 1] += 1
    for i in range(side):
        of_cell[i + 1] += of_cell[i]
    left = right = bottom = np.int64(-1)
    top = np.int64(height)
    mean = np.zeros(side, np.float32)
    kinds = np.zeros(side, np.uint8)
    words = kinds.view(np.uint64)
    # Loops over views of their own are vectorised.
    part, kinds_of_part = mean[low:high], kinds[low:high]
    count = 0
    for x in range(width):
        begin = column_first[x]
        used = False
        for k in range(column_taps):
            used |= seen[begin + k]
        if not used:
            continue
        # The column at the height of each cell, and between which thresholds it is there.
        weight, column = column_weights[x, 0], cells[begin, low:high]
        for i in range(len(part)):
            part[i] = weight * column[i]
        for k in range(1, column_taps):
            weight, column = column_weights[x, k], cells[begin + k, low:high]
            for i in range(len(part)):
                part[i] += weight * column[i]
        for i in range(len(part)):
            value = part[i]
            kinds_of_part[i] = (
                np.uint8(value > -offset) + np.uint8(value > zero) + np.uint8(value > offset)
            )
        if count + height + 2 > len(changes):
            more = np.empty(2 * len(changes) + height + 2, np.int64)
            more[:count] = changes[:count]
            changes = more
        before, start = count, x * height
        inside = False
        at = np.int64(0)
        while at < side:
            # Cells of one kind from here on.
            kind = kinds[at]
            repeated = np.uint64(kind) * np.uint64(0x0101010101010101)
            end = at + 1
            while end < side and kinds[end] == kind:
                end += _WORD if end % _WORD == 0 and words[end // _WORD] == repeated else 1
            # Pixels of these cells alone are of their kind, too.
            mixed = end if end == side else max(at, end - row_taps + 1)
            pixels = of_cell[mixed] - of_cell[at]
            if pixels > 0:
                areas[1] += pixels * (kind == 3)
                areas[2] += pixels * (kind >= 1)
                if inside != (kind >= 2):
                    inside = not inside
                    changes[count] = start + of_cell[at]
                    count += 1
            for y in range(of_cell[mixed], of_cell[end]):
                value = zero
                for k in range(row_taps):
                    value += row_weights[y, k] * mean[row_first[y] + k]
                areas[1] += value > offset
                areas[2] += value > -offset
                if inside != (value > zero):
                    inside = not inside
                    changes[count] = start + y
                    count += 1
            at = end
        if inside:
            changes[count] = start + height
            count += 1
        if count == before:
            continue
        right = np.int64(x)
        if left < 0:
            left = right
        top = min(top, changes[before] - start)
        bottom = max(bottom, changes[count - 1] - start)
        for i in range(before, count, 2):
            areas[0] += changes[i + 1] - changes[i]
        if before and changes[before - 1] == changes[before]:
            # A run that goes on from the column before.
            for i in range(before + 1, count):
                changes[i - 2] = changes[i]
            count -= 2
    if count:
        box[:] = left, top, right - left + 1, bottom - top
    return changes[:count].copy(), areas, box
