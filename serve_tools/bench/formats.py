"""Prints what mask formats cost for small masks of large images, beside the way by whole images.

``python -m serve_tools.bench.formats``: masks of 700 pixels in an image of 48 megapixels.
"""

from __future__ import annotations

import io
import time
from collections.abc import Callable

import numpy as np
from PIL import Image
from pycocotools import mask as coco

from serve_app.core.rle import Rle, encode_part
from serve_app.core.types import BoolArray, Mask
from serve_app.masks.operations import mask_png, mask_polygons, masks_npz, rle_polygons

_SIZE = (6000, 8000)
_SIDE = 700
_CORNER = (6600, 5100)


def main() -> None:
    """Time each format both ways."""
    mask = _mask()
    cases: list[tuple[str, int, Callable[[Mask], object], Callable[[Mask], object]]] = [
        ("polygon", 3, lambda m: rle_polygons(m.rle), lambda m: mask_polygons(_whole(m.rle))),
        ("png", 3, lambda m: mask_png(m.rle), lambda m: _pillow(_whole(m.rle))),
    ]
    for name, count, ours, whole in cases:
        _report(name, count, _seconds(ours, mask) * count, _seconds(whole, mask) * count)
    files = {
        "npz": lambda m: masks_npz([m] * 30, _SIZE),
        "whole": lambda m: np.savez_compressed(io.BytesIO(), masks=_whole(m.rle)[None]),
    }
    _report("npz", 30, _seconds(files["npz"], mask), _seconds(files["whole"], mask) * 30)


def _mask() -> Mask:
    y, x = np.mgrid[:_SIDE, :_SIDE] - (_SIDE - 1) / 2
    radius = np.hypot(x, y)
    ring = (radius <= _SIDE / 2) & (radius > _SIDE / 8)
    rle, bbox, area = encode_part(np.ascontiguousarray(ring.T), *_CORNER, _SIZE)
    return Mask(rle=rle, score=0.9, stability_score=0.9, bbox=bbox, area=area)


def _whole(rle: Rle) -> BoolArray:
    decoded = coco.decode({"size": list(rle.size), "counts": rle.counts})
    return np.ascontiguousarray(decoded, dtype=np.bool_)


def _pillow(mask: BoolArray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(mask * np.uint8(255)).save(buffer, format="PNG")
    return buffer.getvalue()


def _seconds(work: Callable[[Mask], object], mask: Mask) -> float:
    """The best of three."""
    taken = []
    for _ in range(3):
        started = time.perf_counter()
        work(mask)
        taken.append(time.perf_counter() - started)
    return min(taken)


def _report(name: str, masks: int, ours_s: float, whole_s: float) -> None:
    print(
        f"{name:8} {masks:2} masks: {ours_s:6.3f} s; by whole images {whole_s:6.2f} s, "
        f"{whole_s / ours_s:.0f} times as long"
    )


if __name__ == "__main__":
    main()
