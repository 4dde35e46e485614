"""The name of an image: its size and a hash of its pixels.

The same picture has the same name whatever file it came in, and nobody can choose a name that
belongs to another picture.  The hash frames mode, width and height before the pixels, so that
two images with the same bytes in another shape differ (the mistake of CVE-2025-46722).
"""

from __future__ import annotations

import hashlib
import re
import struct

import numpy as np
from numpy.typing import NDArray

from serve_app.core.errors import UnknownImage

_MODE = b"RGB"
_PATTERN = re.compile(r"([1-9][0-9]{0,6})x([1-9][0-9]{0,6})-[0-9a-f]{64}")


def image_id(pixels: NDArray[np.uint8]) -> str:
    """``"{width}x{height}-{sha256}"`` of an upright ``(H, W, 3) uint8`` RGB image."""
    height, width = pixels.shape[:2]
    digest = hashlib.sha256(struct.pack(">B3sQQ", len(_MODE), _MODE, width, height))
    digest.update(np.ascontiguousarray(pixels).data)
    return f"{width}x{height}-{digest.hexdigest()}"


def parse_image_id(text: str) -> tuple[int, int]:
    """``(width, height)`` in pixels of the image that ``text`` names.

    Raises:
        UnknownImage: ``text`` is not of the one spelling that `image_id` gives.
    """
    match = _PATTERN.fullmatch(text)
    if match is None:
        raise UnknownImage(
            "this is not an image_id: send back, unchanged, the one of an earlier answer",
            "image_id",
        )
    return int(match[1]), int(match[2])
