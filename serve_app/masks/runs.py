"""Where a mask begins and ends along its rows, from COCO's run lengths along its columns."""

from __future__ import annotations

import numpy as np

from serve_app.core.rle import Ints, Rle, changes_of
from serve_app.masks.compiled import compiled


def row_changes(rle: Rle) -> tuple[Ints, Ints]:
    """The pixels at which a mask begins and ends in its rows, in turn; the cost is its boundary's.

    Returns:
        ``starts (height + 1,) int64`` and ``xs int64``: those of row ``y`` are
        ``xs[starts[y]:starts[y + 1]]``.
    """
    height, width = rle.size
    starts, xs = _along_rows(changes_of(rle), height, width)
    return starts, xs


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
def _merge(a: Ints, b: Ints, found: Ints) -> int:
    """Write two ascending lists to ``found`` as one; returns its length."""
    i = j = 0
    for count in range(len(a) + len(b)):
        if j == len(b) or (i < len(a) and a[i] <= b[j]):
            found[count] = a[i]
            i += 1
        else:
            found[count] = b[j]
            j += 1
    return len(a) + len(b)


@compiled
def _along_rows(changes: Ints, height: int, width: int) -> tuple[Ints, Ints]:
    """Between two columns the mask changes in the rows in which they differ."""
    starts = np.zeros(height + 1, np.int64)
    if len(changes) == 0:
        return starts, np.empty(0, np.int64)
    left, right = changes[0] // height, min((changes[-1] - 1) // height + 1, width - 1)
    a, b = np.empty(height + 1, np.int64), np.empty(height + 1, np.int64)
    both = np.empty(2 * height + 2, np.int64)
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
            # The columns differ between each two of their changes.
            count = _merge(a[:in_a], b[:in_b], both)
            for i in range(0, count, 2):
                for y in range(both[i], both[i + 1]):
                    if filling:
                        xs[starts[y]] = x
                    starts[y] += 1
            a, b = b, a
            in_a = in_b
    for y in range(height, 0, -1):  # each has become the start of the next row
        starts[y] = starts[y - 1]
    starts[0] = 0
    return starts, xs
