"""Decodes image files and checks arrays: returns upright RGB pixels.

No file is trusted: it is reduced (`serve_app.images.containers`), its size is read from the header
and checked, and only then is it decoded.  Every exception of the library becomes `InvalidImage`
with a message of our own.

Conversion of less common kinds to 8-bit RGB:

* gray, gray with alpha, palette, 1-bit: repeated over three channels;
* transparency of any form: composited over white;
* CMYK (also Adobe's inverted form), YCbCr, Lab: converted without the file's colour profile;
* single-channel images of 16 or 32 bits or floats: scaled linearly so that the 1st percentile
  becomes 0 and the 99th 255, for all images of this kind (`percentile_scaled`);
* 16-bit RGB: the upper eight bits (Pillow keeps no more);
* several frames or pages: the first.
"""

from __future__ import annotations

import io
import warnings
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image
from PIL.TiffImagePlugin import PHOTOMETRIC_INTERPRETATION, TiffImageFile

from serve_app.core.errors import ImageTooLarge, InvalidImage
from serve_app.core.limits import Limits
from serve_app.core.pixels import own_pixels
from serve_app.core.types import RgbArray
from serve_app.images.containers import plain_file

_DEEP_MODES = ("I", "F", "I;16", "I;16B", "I;16L", "I;16N")
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_BLOCK = 2**20


def silence_pillow_warnings() -> None:
    """Ignore Pillow's warnings in this process: one for each odd tag of a file would fill a log.

    For processes of the service alone; a library's import must not change its user's filters.
    """
    warnings.filterwarnings("ignore", module=r"PIL\.")


def decode_image(data: bytes, limits: Limits) -> RgbArray:
    """Decode an image file and apply its EXIF orientation.

    Pillow's own limit of about 179 million pixels applies as well.

    Returns:
        ``(H, W, 3) uint8`` RGB, upright, C-contiguous and read-only.

    Raises:
        InvalidImage: not a supported format, truncated, damaged, or without pixels.
        ImageTooLarge: its header announces more pixels than ``limits`` allow.
    """
    kind, plain = plain_file(data, limits)
    try:
        with Image.open(io.BytesIO(plain), formats=(kind,)) as image:
            _check_size(image.width, image.height, limits)
            image.load()
            return _read_only(_rgb_pixels(_upright(image)))
    except (InvalidImage, ImageTooLarge):
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as exc:
        raise _too_large(limits) from exc
    except Exception as exc:
        # Pillow's plugins raise about twelve types for damaged files, MemoryError among them;
        # their messages may contain addresses and paths.
        raise InvalidImage(
            f"the image cannot be decoded: it is truncated, damaged, or not a usual {kind} file"
        ) from exc


def check_pixels(array: object, limits: Limits) -> RgbArray:
    """A Python caller's array as `own_pixels` makes it of one, within the limits.

    Raises:
        InvalidImage: another type, shape or dtype, or without pixels.
        ImageTooLarge: larger than ``limits`` allow.
    """
    if not isinstance(array, np.ndarray):
        raise InvalidImage("an image must be a file's bytes, a numpy array, or an image_id")
    pixels = own_pixels(array)
    _check_size(pixels.shape[1], pixels.shape[0], limits)
    return pixels


def percentile_scaled(values: NDArray[Any]) -> NDArray[np.uint8]:
    """Scale a ``(H, W)`` array of any dtype to uint8: 1st percentile → 0, 99th → 255.

    Percentiles, not extremes: a single hot pixel of a camera would darken all others.  Where they
    coincide (few bright spots on a constant background), minimum and maximum are used; a constant
    image becomes 0.  NaN becomes 0 and is ignored in the percentiles.
    """
    finite = values if values.dtype.kind in "iu" else values[np.isfinite(values)]
    result = np.zeros(values.shape, np.uint8)
    if finite.size == 0:
        return result
    # No interpolation, which would overflow between integers.
    low, high = (float(v) for v in np.percentile(finite, (1, 99), method="inverted_cdf"))
    if low == high:
        low, high = float(finite.min()), float(finite.max())
    if low == high:
        return result
    # In blocks: the whole image in float64 would take eight times its memory.
    rows = max(1, _BLOCK // values.shape[1])
    for top in range(0, values.shape[0], rows):
        part = (values[top : top + rows].astype(np.float64) - low) / (high - low)
        part = np.nan_to_num(part, nan=0.0, posinf=1.0, neginf=0.0)
        result[top : top + rows] = np.rint(part.clip(0, 1) * 255)
    return result


def _read_only(pixels: NDArray[np.uint8]) -> RgbArray:
    view = pixels.view()
    view.flags.writeable = False
    return view


def _too_large(limits: Limits, size: str = "") -> ImageTooLarge:
    return ImageTooLarge(
        f"the image{size} is too large: the limits are {limits.max_image_pixels} pixels and "
        f"{limits.max_image_side} on a side"
    )


def _check_size(width: int, height: int, limits: Limits) -> None:
    if width < 1 or height < 1:
        raise InvalidImage("the image has no pixels: its width or height is zero")
    if max(width, height) > limits.max_image_side or width * height > limits.max_image_pixels:
        raise _too_large(limits, f" of {width} x {height} pixels")


def _upright(image: Image.Image) -> Image.Image:
    if isinstance(image, TiffImageFile):
        return image  # Pillow applies the orientation on load
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation)
    except Exception:
        # Damaged metadata must not fail the request.
        return image
    turn = _UPRIGHT.get(orientation) if isinstance(orientation, int) else None
    return image if turn is None else image.transpose(turn)


def _rgb_pixels(image: Image.Image) -> NDArray[np.uint8]:
    """Any mode of Pillow → ``(H, W, 3) uint8``."""
    if image.mode in _DEEP_MODES:
        gray = percentile_scaled(np.asarray(image))
        if isinstance(image, TiffImageFile) and image.tag_v2.get(PHOTOMETRIC_INTERPRETATION) == 0:
            gray = 255 - gray  # white is zero: Pillow turns 8-bit images only
        return np.repeat(gray[:, :, np.newaxis], 3, axis=2)
    width, height = image.size
    pixels = np.empty((height, width, 3), np.uint8)
    # In blocks: Pillow needs four bytes per pixel for each step of a conversion.
    rows = max(1, _BLOCK // width)
    for top in range(0, height, rows):
        bottom = min(height, top + rows)
        pixels[top:bottom] = np.asarray(_rgb(image.crop((0, top, width, bottom))))
    return pixels


def _rgb(image: Image.Image) -> Image.Image:
    """Any 8-bit mode of Pillow → ``RGB``; Lab through littleCMS, the others by formula."""
    if image.has_transparency_data:
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image.convert("RGBA")).convert("RGB")
    return image.convert("RGB")
