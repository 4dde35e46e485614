"""Operations on finished masks: outlines, clean-up, files.

Frame: pixel ``(i, j)`` covers ``[j, j+1) x [i, i+1)``, its centre is ``(j + 0.5, i + 0.5)``; x
runs right, y runs down.
"""

from __future__ import annotations

import io
import struct
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from typing import Any, Literal, cast

import contourpy
import cv2
import numpy as np
from isal import isal_zlib
from numpy.typing import NDArray

from serve_app.core.geometry import tight_box
from serve_app.core.rle import Rle, decode_part, decode_rle, encode_part
from serve_app.core.types import BoolArray, Mask

Ring = NDArray[np.float64]
"""``(N, 2)`` vertices ``(x, y)`` in pixels; the last one is joined to the first, not repeated."""

Polygon = list[Ring]
"""An exterior ring and the rings of its holes."""

_PIECE = bytes(2**18)
"""Zeros that are compressed at once: they stay in the processor's cache."""

_Filled = tuple[list[Ring], list[NDArray[np.uint32]]]


def rle_polygons(rle: Rle) -> list[Polygon]:
    """Return `mask_polygons` of an encoded mask; the cost depends on the mask's extent."""
    part, x, y = decode_part(rle)
    return [[ring + np.array([x, y]) for ring in polygon] for polygon in mask_polygons(part)]


def mask_polygons(mask: BoolArray) -> list[Polygon]:
    """Return the outlines of a ``(H, W) bool`` mask: one polygon per connected component.

    Vertices are the midpoints between the centres of a pixel of the mask and a neighbour outside
    it.  So corners are cut by half a pixel, no ring touches itself or another, and rasterising the
    polygons at pixel centres reproduces the mask exactly.

    As plain numbers ``(x, y)``, exterior rings run counter-clockwise and holes clockwise (positive
    and negative shoelace area), as RFC 7946 requires of GeoJSON.  As y points down here, an
    exterior ring looks clockwise on a screen.
    """
    x0, y0, x1, y1 = tight_box(mask)
    if not x1:
        return []
    generator = contourpy.contour_generator(
        z=np.pad(mask[y0:y1, x0:x1], 1).astype(np.float64),
        name="serial",
        fill_type=contourpy.FillType.OuterOffset,
    )
    points, offsets = cast(_Filled, generator.filled(0.5, 2.0))
    # The origin of contourpy is the centre of the padded corner pixel.
    origin = np.array([x0 - 0.5, y0 - 0.5])
    polygons = []
    for vertices, offset in zip(points, offsets, strict=True):
        # contourpy repeats the first vertex at the end; drop it.
        rings = [
            _without_collinear(vertices[start : end - 1] + origin)
            for start, end in zip(offset[:-1].tolist(), offset[1:].tolist(), strict=True)
        ]
        polygons.append([_oriented(rings[0], 1), *(_oriented(ring, -1) for ring in rings[1:])])
    return polygons


def geojson_coordinates(polygons: Sequence[Polygon]) -> list[list[list[list[float]]]]:
    """Return the coordinates of a GeoJSON ``MultiPolygon``, in which rings are closed."""
    return [[np.vstack([ring, ring[:1]]).tolist() for ring in polygon] for polygon in polygons]


def ring_area(ring: Ring) -> float:
    """Return the signed area in square pixels; exterior rings have a positive one."""
    x, y = ring[:, 0], ring[:, 1]
    return float((x * np.roll(y, -1) - np.roll(x, -1) * y).sum() / 2)


def _without_collinear(ring: Ring) -> Ring:
    # Coordinates are multiples of one half, so the products are exact.
    before, after = ring - np.roll(ring, 1, axis=0), np.roll(ring, -1, axis=0) - ring
    corner: BoolArray = before[:, 0] * after[:, 1] != before[:, 1] * after[:, 0]
    return ring[corner]


def _oriented(ring: Ring, sign: int) -> Ring:
    return ring if ring_area(ring) * sign > 0 else ring[::-1]


def remove_small_regions(
    mask: BoolArray, area: float, mode: Literal["holes", "islands"]
) -> tuple[BoolArray, bool]:
    """Fill holes, or remove islands, of fewer than ``area`` pixels (8-connected).

    Same semantics as ``segment_anything.utils.amg.remove_small_regions``: if all islands are too
    small, the largest one stays.

    Returns:
        The ``(H, W) bool`` mask and whether it was changed.
    """
    holes = mode == "holes"
    count, regions, stats, _ = cv2.connectedComponentsWithStats(
        (mask ^ holes).astype(np.uint8), connectivity=8
    )
    sizes = stats[1:, cv2.CC_STAT_AREA]
    small = sizes < area
    if not small.any():
        return mask, False
    inside = np.zeros(count, np.bool_)
    if holes:
        inside[0] = True
        inside[1:] = small
    elif small.all():
        inside[1 + int(np.argmax(sizes))] = True
    else:
        inside[1:] = ~small
    return inside[regions], True


def rle_in_canvas(rle: Rle, x: int, y: int, height: int, width: int) -> Rle:
    """Move the mask of a crop with its upper left pixel at ``(x, y)`` to the full image's frame.

    Raises:
        ValueError: the crop does not lie within ``height x width``.
    """
    rows, columns = rle.size
    if x < 0 or y < 0 or x + columns > width or y + rows > height:
        raise ValueError("the crop does not lie within the canvas")
    if (rows, columns) == (height, width):
        return rle
    return encode_part(np.ascontiguousarray(decode_rle(rle).T), x, y, (height, width))[0]


def _image_rows(rle: Rle, filled: int, before: int = 0) -> Iterator[memoryview]:
    """The rows of the mask as bytes, in pieces to be used before the next one is taken.

    Args:
        filled: the byte of a pixel of the mask; others are 0.
        before: zeros before each row.
    """
    height, width = rle.size
    part, x, y = decode_part(rle)
    h, w = part.shape
    line = before + width
    yield from _zeros(y * line)
    rows = np.zeros((min(h, max(1, len(_PIECE) // line)), line), np.uint8)
    for top in range(0, h, max(1, len(rows))):
        piece = part[top : top + len(rows)]
        rows[: len(piece), before + x : before + x + w] = piece * np.uint8(filled)
        yield rows[: len(piece)].data.cast("B")
    yield from _zeros((height - y - h) * line)


def _zeros(count: int) -> Iterator[memoryview]:
    zeros = memoryview(_PIECE)
    for start in range(0, count, len(zeros)):
        yield zeros[: count - start]


def mask_png(rle: Rle) -> bytes:
    """Return the mask as a PNG file: 8-bit gray, 0 and 255."""
    height, width = rle.size
    # Pillow needs the whole image, and its zlib ten times as long for the zeros around the mask.
    compressor = isal_zlib.compressobj(level=1)
    lines = [compressor.compress(piece) for piece in _image_rows(rle, 255, before=1)]
    chunks = (
        (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)),
        (b"IDAT", b"".join([*lines, compressor.flush()])),
        (b"IEND", b""),
    )
    file = bytearray(b"\x89PNG\r\n\x1a\n")
    for kind, content in chunks:
        body = kind + content
        file += struct.pack(">I", len(content)) + body + struct.pack(">I", zlib.crc32(body))
    return bytes(file)


def masks_npz(masks: Sequence[Mask], size: tuple[int, int], **columns: NDArray[Any]) -> bytes:
    """Return masks as a compressed ``.npz`` file, for ``numpy.load`` without pickle.

    Its arrays: ``masks (N, H, W) bool``, ``scores (N,) float32``, ``stability_scores (N,)
    float32``, ``bboxes (N, 4) int32`` as ``(x, y, w, h)``, ``areas (N,) int64``, and
    ``columns`` (``prompt_index``, for instance).

    Args:
        masks: masks of one image.
        size: ``(height, width)`` of the image, needed if there are no masks.
        columns: further arrays, one row per mask.
    """
    arrays: dict[str, NDArray[Any]] = {
        "scores": np.array([m.score for m in masks], np.float32),
        "stability_scores": np.array([m.stability_score for m in masks], np.float32),
        "bboxes": np.array([m.bbox for m in masks], np.int32).reshape(-1, 4),
        "areas": np.array([m.area for m in masks], np.int64),
        **columns,
    }
    buffer = io.BytesIO()
    # numpy.savez_compressed needs all masks in memory at once: gigabytes for a large photo.
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        with archive.open("masks.npy", "w", force_zip64=True) as entry:
            # zipfile has no other way to choose a compressor; zlib takes twice as long for zeros.
            cast(Any, entry)._compressor = isal_zlib.compressobj(1, isal_zlib.DEFLATED, -15)
            np.lib.format.write_array_header_1_0(
                entry, {"descr": "|b1", "fortran_order": False, "shape": (len(masks), *size)}
            )
            for mask in masks:
                for piece in _image_rows(mask.rle, 1):
                    entry.write(piece)
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w") as entry:
                np.lib.format.write_array(entry, array, allow_pickle=False)
    return buffer.getvalue()
