"""Prints what it takes to cut a mask and to write it, beside the way by whole images.

``python -m serve_tools.bench.formats``: a mask of a third of a photo of 1,800 x 1,200 pixels, one
350 pixels wide in 48 megapixels and one of half of them; and noise.  On one thread, in turn, the
best of five.
"""

from __future__ import annotations

import io
import time
from collections.abc import Callable
from functools import partial

import cv2
import numpy as np
import torch
from PIL import Image
from pycocotools import mask as coco
from torch.nn import functional as F

from serve_app.core.rle import Rle, encode_rle
from serve_app.core.types import BoolArray, Float32Array, Mask
from serve_app.engines.sam.cut import cut_mask
from serve_app.engines.sam.frame import IMAGE_SIZE, Frame
from serve_app.masks.operations import masks_npz
from serve_app.masks.outlines import rle_polygons
from serve_app.masks.png import mask_png

_REPEATS = 5


def main() -> None:
    """Time each mask both ways."""
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    for title, height, width, radius in (
        ("a third of 1,800 x 1,200", 1200, 1800, 0.82),
        ("350 pixels wide in 8,000 x 6,000", 6000, 8000, 0.058),
        ("half of 8,000 x 6,000", 6000, 8000, 0.99),
    ):
        frame = Frame.of(height, width, "pad")
        logits = _logits(frame, radius)
        mask = cut_mask(logits, frame)
        whole = _decoded(mask.rle)
        print(f"{title}: {mask.area / height / width:.0%}")
        _report("cut", partial(cut_mask, logits, frame), partial(_cut_whole, logits, frame))
        _report("png", partial(mask_png, mask.rle), partial(_pillow, mask.rle))
        _report("polygon", partial(rle_polygons, mask.rle), partial(_contours, mask.rle))
        found = Mask(rle=mask.rle, score=0.9, stability_score=0.9, bbox=mask.bbox, area=mask.area)
        saved = partial(np.savez_compressed, io.BytesIO(), masks=whole[None])
        _report("npz", partial(masks_npz, [found], (height, width)), saved)

    frame = Frame.of(1200, 1800, "pad")
    noise = 10 * np.random.default_rng(0).standard_normal((256, 256)).astype(np.float32)
    print("noise in 1,800 x 1,200, the worst case")
    _report("cut", partial(cut_mask, noise, frame), partial(_cut_whole, noise, frame))


def _logits(frame: Frame, radius: float) -> Float32Array:
    """A ring of this radius, in shares of half of the image's shorter side."""
    rows, columns = np.mgrid[:256, :256] + 0.5
    y, x = frame.input_height / 8, frame.input_width / 8
    shorter = min(y, x)
    distance = np.hypot(rows - y, columns - x) / shorter
    logits: Float32Array = np.minimum(radius - distance, distance - radius / 4).astype(np.float32)
    return 8 * np.float32(shorter) * logits


def _cut_whole(logits: Float32Array, frame: Frame) -> Rle:
    """As `segment_anything` does, at full size."""
    low = torch.from_numpy(logits)[None, None]
    square = F.interpolate(low, (IMAGE_SIZE, IMAGE_SIZE), mode="bilinear", align_corners=False)
    inside = square[..., : frame.input_height, : frame.input_width]
    size = (frame.height, frame.width)
    full = F.interpolate(inside, size, mode="bilinear", align_corners=False)[0, 0]
    # Its two areas for the stability score.
    _ = int((full > 1).sum()), int((full > -1).sum())
    return encode_rle((full > 0).numpy())


def _decoded(rle: Rle) -> BoolArray:
    decoded = coco.decode({"size": list(rle.size), "counts": rle.counts})
    return np.ascontiguousarray(decoded, dtype=np.bool_)


def _contours(rle: Rle) -> object:
    mask = _decoded(rle).astype(np.uint8)
    return cv2.findContours(mask, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)


def _pillow(rle: Rle) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(_decoded(rle) * np.uint8(255)).save(buffer, format="PNG")
    return buffer.getvalue()


def _milliseconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return (time.perf_counter() - started) * 1e3


def _report(name: str, ours: Callable[[], object], whole: Callable[[], object]) -> None:
    rounds = [(_milliseconds(ours), _milliseconds(whole)) for _ in range(_REPEATS)]
    ours_ms, whole_ms = (min(taken) for taken in zip(*rounds, strict=True))
    print(
        f"  {name:8} {ours_ms:8.2f} ms; by the whole image {whole_ms:9.2f} ms, "
        f"{whole_ms / ours_ms:.0f} times as long"
    )


if __name__ == "__main__":
    main()
