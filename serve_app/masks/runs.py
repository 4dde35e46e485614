"""Run lengths of a mask: COCO's text, and where the mask changes along columns and rows.

*Changes* of a mask are the sorted flat pixel indices at which it begins and ends, in turn.  Along
columns they are the cumulative sums of COCO's run lengths.  Along rows they are given row by row:
``starts (height + 1,)`` and ``xs``, the changes of row ``y`` being ``xs[starts[y]:starts[y + 1]]``.
All arrays are int64.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from serve_app.core.rle import Rle
from serve_app.masks.compiled import compiled

Ints = NDArray[np.int64]


def changes_of(rle: Rle) -> Ints:
    """The changes of a mask along its columns, an even number; empty runs are left out."""
    return _read(np.frombuffer(bytearray(rle.counts), np.uint8), rle.size[0] * rle.size[1])


def row_changes(rle: Rle) -> tuple[Ints, Ints]:
    """The changes of a mask along its rows: ``starts`` and ``xs``; the cost is its boundary's."""
    height, width = rle.size
    starts, xs = _along_rows(changes_of(rle), height, width)
    return starts, xs


def rle_of(changes: Ints, size: tuple[int, int]) -> Rle:
    """The mask with these changes along its columns, in an image of ``(height, width)``."""
    return Rle(size, _written(changes, size[0] * size[1]).tobytes())


@compiled
def _read(text: NDArray[np.uint8], pixels: int) -> Ints:
    """Parse COCO's text (pycocotools, ``maskApi.c``), which `parse_rle` has checked.

    Numbers are written in groups of five bits, lowest first, as characters from ``0`` on; the sixth
    bit marks that another group follows, and the last group's fifth bit is the sign.  From the
    fourth number on, the difference to the number two places before is stored.
    """
    changes = np.empty(len(text) + 1, np.int64)
    count = runs = 0
    at = before = last = np.int64(0)
    i = 0
    while i < len(text):
        value = np.int64(0)
        shift = np.int64(0)
        more = True
        while more and i < len(text):
            group = np.int64(text[i]) - 48
            value |= (group & 0x1F) << shift
            shift += 5
            more = group & 0x20 != 0
            if not more and group & 0x10:
                value |= np.int64(-1) << shift
            i += 1
        if runs > 2:
            value += before
        before, last = last, value
        runs += 1
        at += value
        if count and changes[count - 1] == at:
            count -= 1  # after an empty run: the ones around it are one
        else:
            changes[count] = at
            count += 1
    if count % 2 and changes[count - 1] == pixels:
        count -= 1  # the end of the image, where no run begins
    elif count % 2:
        changes[count] = pixels
        count += 1
    return changes[:count]


@compiled
def _written(changes: Ints, pixels: int) -> NDArray[np.uint8]:
    """COCO's text of a mask with these changes along its columns."""
    text = np.empty((len(changes) + 1) * 8, np.uint8)
    size = 0
    at = before = last = np.int64(0)
    runs = len(changes)
    if runs == 0 or changes[runs - 1] < pixels:  # COCO writes no empty run at the end
        runs += 1
    for i in range(runs):
        change = changes[i] if i < len(changes) else np.int64(pixels)
        run = change - at
        at = change
        value = run - before if i > 2 else run
        before, last = last, run
        more = True
        while more:
            group = value & 0x1F
            value >>= 5
            more = value != -1 if group & 0x10 else value != 0
            text[size] = 48 + (group | 0x20 if more else group)
            size += 1
    return text[:size]


@compiled
def _of_column(changes: Ints, first: int, start: int, height: int, found: Ints) -> tuple[int, int]:
    """Write the changes within the column that starts at pixel ``start`` to ``found``.

    Args:
        first: the first run (pair of changes) that may reach into the column.

    Returns:
        How many there are, and the first run that may reach into the next column.
    """
    count = 0
    run = first
    end = start + height
    while 2 * run < len(changes) and changes[2 * run] < end:
        found[count] = max(changes[2 * run], start) - start
        found[count + 1] = min(changes[2 * run + 1], end) - start
        count += 2
        if changes[2 * run + 1] > end:
            break
        run += 1
    return count, run


@compiled
def _along_rows(changes: Ints, height: int, width: int) -> tuple[Ints, Ints]:
    """Between two columns the mask changes in the rows in which they differ."""
    starts = np.zeros(height + 1, np.int64)
    if len(changes) == 0:
        return starts, np.empty(0, np.int64)
    left, right = changes[0] // height, min((changes[-1] - 1) // height + 1, width - 1)
    a, b = np.empty(height + 1, np.int64), np.empty(height + 1, np.int64)
    xs = np.empty(0, np.int64)
    for filling in range(2):
        if filling:
            total = np.int64(0)
            for y in range(height):
                count = starts[y]
                starts[y] = total
                total += count
            starts[height] = total
            xs = np.empty(total, np.int64)
        in_a, run = 0, 0
        for x in range(left, right + 2):
            in_b = 0
            if x < width:
                in_b, run = _of_column(changes, run, x * height, height, b)
            i = j = 0
            while i < in_a or j < in_b:
                # Both lists merged: the columns differ between each two of their changes.
                if j >= in_b or (i < in_a and a[i] <= b[j]):
                    top = a[i]
                    i += 1
                else:
                    top = b[j]
                    j += 1
                if j >= in_b or (i < in_a and a[i] <= b[j]):
                    bottom = a[i]
                    i += 1
                else:
                    bottom = b[j]
                    j += 1
                for y in range(top, bottom):
                    if filling:
                        xs[starts[y]] = x
                    starts[y] += 1
            a, b = b, a
            in_a = in_b
    for y in range(height, 0, -1):  # each has become the start of the next row
        starts[y] = starts[y - 1]
    starts[0] = 0
    return starts, xs
