"""Outlines of a mask as polygons, followed along its runs.

Frame: pixel ``(i, j)`` covers ``[j, j+1) x [i, i+1)``, its centre is ``(j + 0.5, i + 0.5)``; x
runs right, y runs down.

A ring passes each of its changes along the rows once.  From one change to the next it goes along
the line between two rows, where these rows differ: both rows' changes, merged and taken in pairs,
are the ends of these parts.  So the cost is that of the boundary, whatever the mask's area.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from serve_app.core.rle import Ints, Rle
from serve_app.masks.compiled import compiled
from serve_app.masks.runs import row_changes

Ring = NDArray[np.float64]
"""``(N, 2)`` vertices ``(x, y)`` in pixels; the last one is joined to the first, not repeated."""

Polygon = list[Ring]
"""An exterior ring and the rings of its holes."""


def rle_polygons(rle: Rle) -> list[Polygon]:
    """Return the outlines of a mask: one polygon per connected component (of 4 neighbours).

    Vertices are the midpoints between the centres of a pixel of the mask and a neighbour outside
    it.  So corners are cut by half a pixel, no ring touches itself or another, and rasterising the
    polygons at pixel centres reproduces the mask exactly.

    As plain numbers ``(x, y)``, exterior rings run counter-clockwise and holes clockwise (positive
    and negative shoelace area), as RFC 7946 requires of GeoJSON.  As y points down here, an
    exterior ring looks clockwise on a screen.
    """
    starts, xs = row_changes(rle)
    following, parts = _linked(starts, xs)
    vertices, ends, owners = _rings(starts, xs, following, parts)
    polygons: dict[int, Polygon] = {}
    begin = 0
    for end, owner in zip(ends.tolist(), owners.tolist(), strict=True):
        # A part's upper left pixel is on its exterior ring, which is therefore found first.
        polygons.setdefault(owner, []).append(vertices[begin:end])
        begin = end
    return list(polygons.values())


def geojson_coordinates(polygons: Sequence[Polygon]) -> list[Polygon]:
    """Return the coordinates of a GeoJSON ``MultiPolygon``, in which rings are closed."""
    return [[np.vstack([ring, ring[:1]]) for ring in polygon] for polygon in polygons]


def ring_area(ring: Ring) -> float:
    """Return the signed area in square pixels; exterior rings have a positive one."""
    x, y = ring[:, 0], ring[:, 1]
    return float((x * np.roll(y, -1) - np.roll(x, -1) * y).sum() / 2)


@compiled
def _part_of(parts: Ints, run: np.int64) -> np.int64:
    """The first run of the part that a run belongs to, so far."""
    while parts[run] != run:
        parts[run] = parts[parts[run]]
        run = parts[run]
    return run


@compiled
def _linked(starts: Ints, xs: Ints) -> tuple[Ints, Ints]:
    """Link each change to the next one of its ring, and each run to the first of its part.

    A ring has the mask on its left, if y runs up: from a change that begins a run (an even one) it
    goes on along the run's upper side, from one that ends a run along the lower side.
    """
    following = np.empty(len(xs), np.int64)
    parts = np.arange(len(xs) // 2)
    height = len(starts) - 1
    for y in range(height + 1):
        # The row above the line and the row below it; outside of the image nothing is.
        i, above_end = (starts[y - 1], starts[y]) if y > 0 else (np.int64(0), np.int64(0))
        j, below_end = (starts[y], starts[y + 1]) if y < height else (np.int64(0), np.int64(0))
        first = np.int64(-1)
        while i < above_end or j < below_end:
            both = i < above_end and j < below_end
            if both and xs[i] == xs[j]:
                # Where two pixels touch at a corner alone, the ring stays at the pixel it is at.
                above = bool(first < 0 or i % 2 == 1)
            else:
                above = bool(xs[i] < xs[j]) if both else bool(i < above_end)
            if above:
                change = i
                i += 1
            else:
                change = j
                j += 1
            if first < 0:
                first = change
            else:
                for one, other in ((first, change), (change, first)):
                    # A run's begin is left upwards, if it is below the line; its end downwards.
                    if (one % 2 == 0) == (one >= starts[y]):
                        following[one] = other
                first = np.int64(-1)
                at = xs[change]
                # Within a run of both rows; a row's changes are even, so both runs end in it.
                if i % 2 and j % 2 and xs[i] > at and xs[j] > at:
                    one, other = _part_of(parts, i // 2), _part_of(parts, j // 2)
                    parts[max(one, other)] = min(one, other)
    return following, parts


@compiled
def _rings(starts: Ints, xs: Ints, following: Ints, parts: Ints) -> tuple[Ring, Ints, Ints]:
    """Follow all rings; vertices on a straight line are left out.

    Returns:
        ``(N, 2)`` vertices of all rings, the end of each ring in them, and its part.
    """
    vertices = np.empty((3 * len(xs), 2), np.float64)  # at most three for each change
    ends = np.empty(len(xs) // 2, np.int64)
    owners = np.empty(len(xs) // 2, np.int64)
    count = rings = 0
    row = 0
    rows = np.empty(len(xs), np.int64)
    for i in range(len(xs)):
        while starts[row + 1] <= i:
            row += 1
        rows[i] = row
    for start in range(0, len(xs), 2):
        if following[start] < 0:
            continue
        begin = count
        change = np.int64(start)
        while following[change] >= 0:
            nearest = following[change]
            following[change] = -1  # seen
            x, y = float(xs[change]), rows[change] + 0.5
            count = _add(vertices, begin, count, x, y)
            line = y - 0.5 if change % 2 == 0 else y + 0.5
            until = float(xs[nearest])
            if until > x:
                count = _add(vertices, begin, count, x + 0.5, line)
                count = _add(vertices, begin, count, until - 0.5, line)
            elif until < x:
                count = _add(vertices, begin, count, x - 0.5, line)
                count = _add(vertices, begin, count, until + 0.5, line)
            change = nearest
        # The ring's first and last vertices may lie on a line through its start.
        if _straight(vertices, count - 2, count - 1, begin):
            count -= 1
        if _straight(vertices, count - 1, begin, begin + 1):
            for i in range(begin, count - 1):
                vertices[i] = vertices[i + 1]
            count -= 1
        ends[rings] = count
        owners[rings] = _part_of(parts, np.int64(start // 2))
        rings += 1
    return vertices[:count].copy(), ends[:rings], owners[:rings]


@compiled
def _straight(vertices: Ring, a: int, b: int, c: int) -> bool:
    """Whether three vertices lie on a line; multiples of one half, so the products are exact."""
    ahead = (vertices[b, 0] - vertices[a, 0]) * (vertices[c, 1] - vertices[b, 1])
    return bool(ahead == (vertices[b, 1] - vertices[a, 1]) * (vertices[c, 0] - vertices[b, 0]))


@compiled
def _add(vertices: Ring, begin: int, count: int, x: float, y: float) -> int:
    """Add a vertex to the ring from ``begin`` on; the one before it goes if it is on the way."""
    vertices[count, 0] = x
    vertices[count, 1] = y
    if count - begin >= 2 and _straight(vertices, count - 2, count - 1, count):
        vertices[count - 1] = vertices[count]
        return count
    if count > begin and vertices[count - 1, 0] == x and vertices[count - 1, 1] == y:
        return count
    return count + 1
