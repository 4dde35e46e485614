"""The identifier of an image: its size and a hash of its pixels.

Equal pixels have the same identifier in every file format, and a client cannot construct an image
with the identifier of another one.  Mode, width and height are hashed before the pixels, so that
images with the same bytes in different shapes differ (the mistake of CVE-2025-46722).
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
    """``(width, height)`` in pixels of the image with this identifier.

    Raises:
        UnknownImage: ``text`` does not have the format of `image_id`.
    """
    match = _PATTERN.fullmatch(text)
    if match is None:
        raise UnknownImage(
            "not a valid image_id: send one from an earlier response, unchanged",
            "image_id",
        )
    return int(match[1]), int(match[2])
