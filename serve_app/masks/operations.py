"""Operations on finished masks: clean-up, a crop's place in its image, files of many masks."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterator, Sequence
from typing import Any, Literal, cast

import cv2
import numpy as np
from isal import isal_zlib
from numpy.typing import NDArray

from serve_app.core.rle import Rle, decode_part, decode_rle, encode_part
from serve_app.core.types import BoolArray, Mask

_PIECE = bytes(2**18)
"""Zeros that are compressed at once: they stay in the processor's cache."""


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


def _image_rows(rle: Rle) -> Iterator[memoryview]:
    """The rows of the mask as bytes 0 and 1, in pieces to be used before the next one is taken."""
    height, width = rle.size
    part, x, y = decode_part(rle)
    h, w = part.shape
    yield from _zeros(y * width)
    rows = np.zeros((min(h, max(1, len(_PIECE) // width)), width), np.bool_)
    for top in range(0, h, max(1, len(rows))):
        piece = part[top : top + len(rows)]
        rows[: len(piece), x : x + w] = piece
        yield rows[: len(piece)].data.cast("B")
    yield from _zeros((height - y - h) * width)


def _zeros(count: int) -> Iterator[memoryview]:
    zeros = memoryview(_PIECE)
    for start in range(0, count, len(zeros)):
        yield zeros[: count - start]


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
                for piece in _image_rows(mask.rle):
                    entry.write(piece)
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w") as entry:
                np.lib.format.write_array(entry, array, allow_pickle=False)
    return buffer.getvalue()
