"""A file's picture on the way to RGB, and the one rule for its channels.

Channels are numbered as the picture is shown, from 0: gray is one channel; RGB, and what is
converted to it (palette, CMYK, YCbCr, Lab), are three; further channels of the file follow, and
transparency of any form is one channel, the last unless the file has it elsewhere.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from serve_app.core.errors import ImageTooLarge, InvalidImage, InvalidRequest
from serve_app.core.limits import Limits
from serve_app.core.types import PixelSize
from serve_app.images.scaling import blocks

_DEPTHS = tuple(2.0**bits - 1 for bits in (8, 10, 12, 14, 16))
"""Greatest values of samples of these depths."""


@dataclass(kw_only=True, slots=True)
class Picture:
    """A file's samples.

    Attributes:
        samples: ``(H, W, 1 or 3)``, upright, of any real dtype; writable.
        alpha: ``(H, W)``, of any real dtype; bool, or 0 to `_opaque`.
        negative: zero is white.
        nodata: the value of samples without data, as the file gives it.
        channels: of the picture, transparency included.
        used, left: channels that were read, and how many colours were not.
        dtype, bits: of the file's samples.
        animated: there are several frames.
    """

    format: str = ""
    samples: NDArray[Any]
    alpha: NDArray[Any] | None = None
    negative: bool = False
    nodata: float | None = None
    pages: int = 1
    page: int = 0
    channels: int
    used: tuple[int, ...]
    left: int = 0
    dtype: str = "uint8"
    bits: int = 8
    pixel_size: PixelSize | None = None
    animated: bool = False


def used_channels(
    channels: int, alpha: int | None, chosen: tuple[int, ...]
) -> tuple[tuple[int, ...], int]:
    """The channels to be read, and how many others there are that nobody chose to leave out.

    Args:
        alpha: which of the channels is transparency.
        chosen: by the caller; empty: the first three, or the first, that are not transparency.

    Raises:
        InvalidRequest: there is no such channel.
    """
    for channel in chosen:
        if channel >= channels:
            raise InvalidRequest(
                f"the image has {channels} channels, numbered from 0: there is no channel "
                f"{channel}",
                "channel",
            )
    if chosen:
        return chosen, 0
    own = [n for n in range(channels) if n != alpha]
    used = own[:3] if len(own) >= 3 else own[:1]
    return tuple(used), len(own) - len(used)


def too_large(limits: Limits, size: str = "") -> ImageTooLarge:
    """The refusal of an image above the limits."""
    return ImageTooLarge(
        f"the image{size} is too large: the limits are {limits.max_image_pixels} pixels and "
        f"{limits.max_image_side} on a side"
    )


def check_size(width: int, height: int, limits: Limits) -> None:
    """Refuse images without pixels and above the limits.

    Raises:
        InvalidImage: the width or the height is zero.
        ImageTooLarge: there are too many pixels, or too many on a side.
    """
    if width < 1 or height < 1:
        raise InvalidImage("the image has no pixels: its width or height is zero")
    if max(width, height) > limits.max_image_side or width * height > limits.max_image_pixels:
        raise too_large(limits, f" of {width} x {height} pixels")


def upright(samples: NDArray[Any], orientation: int) -> NDArray[Any]:
    """A view of ``(H, W, C)`` samples with EXIF's orientation applied; unknown ones change none."""
    if orientation in (5, 6, 7, 8):
        samples = samples.transpose(1, 0, 2)
    if orientation in (3, 4, 7, 8):
        samples = samples[::-1]
    if orientation in (2, 3, 6, 7):
        samples = samples[:, ::-1]
    return samples


def divide_by_alpha(samples: NDArray[Any], alpha: NDArray[Any]) -> None:
    """Undo, in place, the multiplication of ``(H, W, C)`` samples with their alpha."""
    opaque = _opaque(alpha)
    for rows in blocks(samples):
        with np.errstate(all="ignore"):
            part = samples[rows] / _cover(alpha[rows], opaque)
        part = np.nan_to_num(part, posinf=0.0, neginf=0.0)
        if samples.dtype.kind != "f":
            limits = np.iinfo(samples.dtype)
            part = np.rint(part).clip(limits.min, limits.max)
        samples[rows] = part


def lay_on_white(rgb: NDArray[np.uint8], alpha: NDArray[Any]) -> None:
    """Composite ``(H, W, 3)`` pixels over white, in place."""
    opaque = _opaque(alpha)
    for rows in blocks(rgb):
        cover = _cover(alpha[rows], opaque)
        rgb[rows] = np.rint(rgb[rows] * cover + 255 * (1 - cover))


def _opaque(alpha: NDArray[Any]) -> float:
    """The value of an opaque pixel: the greatest of the type (floats: 1), or of fewer bits.

    Samples may have fewer bits than their type, as a camera's 12 in 16, and floats the values of
    integers.  Only where the greatest value of such a depth occurs, and none above it, is that
    known: other values, as of one half everywhere, are shares of the type's.
    """
    highest = float(np.fmax.reduce(alpha, axis=None, initial=0))  # NaN does not count
    if highest in _DEPTHS:
        return highest
    return float(np.iinfo(alpha.dtype).max) if alpha.dtype.kind in "ui" else 1.0


def _cover(alpha: NDArray[Any], opaque: float) -> NDArray[np.float32]:
    """``(h, w, 1)`` float32, 0 to 1, of an alpha channel."""
    with np.errstate(all="ignore"):
        cover: NDArray[np.float32] = np.nan_to_num(alpha.astype(np.float32) / np.float32(opaque))
    return cover.clip(0, 1)[..., np.newaxis]
