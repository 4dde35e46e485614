"""Low-resolution logits cut into full-size masks, at the cost of the mask's own extent.

Every pixel of the full-size logits is a weighted mean of a few low-resolution cells.  So pixels
that see no cell above the loosest cut are known to be outside, and are never computed: most
masks are far smaller than their image.

A block of neighbouring pixels sees few cells, so it is a small matrix product.  BLAS is kept to
the calling thread: its own threads would spin for the processor that the decoder's next pass
needs.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from serve_app.core.types import BoolArray, Float32Array
from serve_app.engines.sam.frame import Frame

threadpool_limits(1, user_api="blas")

_BLOCK = 1 << 15
"""Pixels computed at a time: an eighth of a megabyte, which stays in the cache."""

_ROWS = 64
"""Rows stretched at a time."""


@dataclass(frozen=True, slots=True, eq=False)
class _Axis:
    """How the pixels of one side of the image see the cells.

    Attributes:
        weights: ``(pixels, 256) float32``, rows that sum to one.
        first, last: ``(pixels,)``, the first and last cell that each of them sees; ascending.
    """

    weights: Float32Array
    first: NDArray[np.int64]
    last: NDArray[np.int64]

    @classmethod
    def of(cls, weights: Float32Array) -> _Axis:
        """From ``(pixels, 256)`` weights, which are those of a few neighbours in each row."""
        seen = weights != 0
        first = seen.argmax(axis=1)
        last = seen.shape[1] - 1 - seen[:, ::-1].argmax(axis=1)
        # A weight may round to zero where those beside it do not.
        return cls(weights, first, np.maximum.accumulate(last))

    def pixels(self, cells: BoolArray, axis: int) -> slice:
        """Pixels that see any of the ``(256, 256) bool`` cells, summed up over ``axis``."""
        wanted = np.flatnonzero(cells.any(axis=axis))
        if not wanted.size:
            return slice(0, 0)
        start = np.searchsorted(self.last, wanted[0], side="left")
        stop = np.searchsorted(self.first, wanted[-1], side="right")
        return slice(int(start), max(int(start), int(stop)))

    def cells(self, pixels: slice) -> slice:
        """All cells that these pixels see."""
        return slice(int(self.first[pixels.start]), int(self.last[pixels.stop - 1]) + 1)

    def mean(self, values: Float32Array, pixels: slice, origin: int) -> Float32Array:
        """The pixels' weighted means of ``(cells, n)`` values, the first of cell ``origin``."""
        seen = self.cells(pixels)
        result: Float32Array = (
            self.weights[pixels, seen] @ values[seen.start - origin : seen.stop - origin]
        )
        return result


def _blocks(pixels: slice, step: int) -> Iterator[slice]:
    for start in range(pixels.start, pixels.stop, step):
        yield slice(start, min(start + step, pixels.stop))


@lru_cache(maxsize=4)  # megabytes each, of large images
def _axes(frame: Frame) -> tuple[_Axis, _Axis]:
    rows, columns = frame.weights()
    return _Axis.of(rows.numpy()), _Axis.of(columns.numpy())


@dataclass(frozen=True, slots=True, eq=False)
class Cut:
    """A full-size mask, as the part of the image that holds it.

    Attributes:
        columns: ``(w, h) bool``, transposed.
        x, y: the part's upper left pixel.
        inner, outer: how many pixels are above the upper and the lower cut.
    """

    columns: BoolArray
    x: int
    y: int
    inner: int
    outer: int

    @property
    def extent(self) -> tuple[int, int, int, int]:
        """The smallest ``(x0, y0, x1, y1)`` around the mask, zeros if it is empty."""
        columns, rows = (np.flatnonzero(self.columns.any(axis=axis)) for axis in (1, 0))
        if not len(rows):
            return 0, 0, 0, 0
        x0, x1, y0, y1 = (int(v) for v in (columns[0], columns[-1], rows[0], rows[-1]))
        return self.x + x0, self.y + y0, self.x + x1 + 1, self.y + y1 + 1


def cut(logits: Float32Array, frame: Frame, offset: float = 1.0) -> Cut:
    """The mask ``logit > 0`` at the image's full size, and its cuts at ``+-offset``.

    Args:
        logits: ``(256, 256) float32``.
        frame: the image's place in the model's square.
        offset: above 0.
    """
    rows, columns = _axes(frame)
    inside = logits > -offset
    y, x = rows.pixels(inside, axis=1), columns.pixels(inside, axis=0)
    if y.start == y.stop or x.start == x.stop:
        return Cut(np.zeros((0, 0), np.bool_), 0, 0, 0, 0)
    tall, wide = rows.cells(y), columns.cells(x)
    part = logits[tall, wide]
    rows_of = [rows.mean(part, block, tall.start) for block in _blocks(y, _ROWS)]
    stretched = np.ascontiguousarray(np.concatenate(rows_of).T)
    mask = np.empty((x.stop - x.start, y.stop - y.start), np.bool_)
    inner = outer = 0
    for block in _blocks(x, max(1, _BLOCK // mask.shape[1])):
        values = columns.mean(stretched, block, wide.start)
        np.greater(values, 0, out=mask[block.start - x.start : block.stop - x.start])
        inner += int(np.count_nonzero(values > offset))
        outer += int(np.count_nonzero(values > -offset))
    return Cut(mask, x.start, y.start, inner, outer)
