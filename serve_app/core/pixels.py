"""What a caller may give as an image: one check for HTTP, its client, handles and local calls.

An image is taken where its meaning is clear, and copied: it may be read later, when
the caller has reused its buffer (Ray pickles the arguments of a call in another thread).
Everything else is refused with a hint, before anything is sent.
"""

from __future__ import annotations

import os
import re
from typing import Any

import numpy as np
from numpy.typing import NDArray

from serve_app.core.errors import InvalidImage, InvalidRequest, UnknownImage
from serve_app.core.types import RgbArray

_FORMS = "give a file's bytes, a uint8 array (H, W, 3) in RGB, or an image_id"
_INSTEAD = (
    "no path and no URL is opened; give the file's bytes (over HTTP as a file, or as base64 in "
    "image)"
)
_LONGEST_ID = 128
_NO_ID = re.compile(r"[^0-9A-Za-z_-]")
_CHANNELS = (1, 3, 4)


def own_image(value: Any) -> bytes | RgbArray | str:
    """The image that a caller means, as bytes, a read-only RGB array of our own, or an id.

    Raises:
        InvalidImage: it is none, with a hint at what to give instead.
        InvalidRequest, UnknownImage: a text that is no image_id, as over HTTP.
    """
    if isinstance(value, str):
        if not 1 <= len(value) <= _LONGEST_ID:
            raise InvalidRequest(f"an image_id has 1 to {_LONGEST_ID} characters: {_INSTEAD}")
        check_may_be_id(value)
        return value
    if isinstance(value, bytes | bytearray | memoryview):
        return _file(value)
    if isinstance(value, np.ndarray):
        return own_pixels(value)
    raise InvalidImage(_FORMS + _hint(value))


def check_may_be_id(text: str) -> None:
    """Raise `UnknownImage` with a hint if ``text`` is a path, a URL or base64, not an image_id."""
    if _NO_ID.search(text):
        raise UnknownImage(f"this is not an image_id: {_INSTEAD}", "image_id")


def own_pixels(array: NDArray[Any]) -> RgbArray:
    """A copy of an array as ``(H, W, 3) uint8`` RGB, C-contiguous and read-only.

    Gray ``(H, W)`` is repeated over the channels, and transparency composited over white, as in
    files.

    Raises:
        InvalidImage: another shape or dtype, or no pixels.
    """
    array = np.asarray(array)  # of a matrix every part is a matrix
    shape = " x ".join(str(n) for n in array.shape[:5]) or "a scalar"
    channels = 1 if array.ndim == 2 else array.shape[-1] if array.ndim == 3 else 0
    if channels not in _CHANNELS:
        hint = ""
        if array.ndim == 3 and array.shape[0] in _CHANNELS:
            hint = "; move the channels to the end with image.transpose(1, 2, 0)"
        elif array.ndim == 4:
            hint = "; send the images of a batch one by one"
        raise InvalidImage(f"an image array must be (H, W, 3), RGB, not {shape}{hint}")
    if array.dtype != np.uint8:
        raise InvalidImage(
            f"an image array must be uint8 (0 to 255), not {array.dtype.name}; "
            f"convert it with {_conversion(array.dtype)}"
        )
    if array.size == 0:
        raise InvalidImage("the image has no pixels: its width or height is zero")
    if channels == 4:
        # Rounded as Pillow does it for files; the greatest value fits 16 bits.
        alpha = array[..., 3:].astype(np.uint16)
        array = ((array[..., :3] * alpha + 255 * (255 - alpha) + 127) // 255).astype(np.uint8)
    elif channels == 1:
        array = np.repeat(array.reshape(*array.shape[:2], 1), 3, axis=2)
    pixels: RgbArray = np.array(array, order="C", subok=False)
    pixels.flags.writeable = False
    return pixels


def _file(value: bytes | bytearray | memoryview) -> bytes:
    if isinstance(value, memoryview) and (value.ndim != 1 or value.itemsize != 1):
        raise InvalidImage("a memoryview must be of a file's bytes; pixels are given as an array")
    if not len(value):
        raise InvalidImage("the file is empty")
    return bytes(value)


def _hint(value: Any) -> str:
    if value is None:
        return "; the image is None: was it read?"
    if isinstance(value, os.PathLike):
        return "; a path is not opened: read it with Path.read_bytes()"
    if type(value).__module__.startswith("PIL."):
        return '; of a PIL image np.asarray(image.convert("RGB"))'
    if callable(getattr(value, "read", None)):
        return "; of an open file image.read()"
    if hasattr(value, "__array__") or isinstance(value, list | tuple):
        return "; make it an array with np.asarray(image)"
    return f", not {type(value).__name__[:40]}"


def _conversion(dtype: np.dtype[Any]) -> str:
    """How values of a dtype become bytes, as an expression."""
    if dtype.kind == "b":
        return "image.astype(np.uint8) * 255"
    plain = "image.astype(np.uint8) if its values are 0 to 255"
    if dtype.kind == "f":
        return f"(image * 255).round().astype(np.uint8) if its values are 0 to 1, or {plain}"
    if dtype.kind == "u" and dtype.itemsize == 2:
        return f"(image / 257).round().astype(np.uint8) if its values are 0 to 65535, or {plain}"
    return plain
