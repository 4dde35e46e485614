"""Decodes image files and checks arrays: returns upright RGB pixels.

No file is trusted: it is reduced (`serve_app.images.containers`), its size is read from the header
and checked, and only then is it decoded.  Every exception of the library becomes `InvalidImage`
with a message of our own.

Conversion of less common kinds to 8-bit RGB:

* gray, gray with alpha, palette, 1-bit: repeated over three channels;
* transparency of any form: composited over white;
* CMYK (also Adobe's inverted form), YCbCr, Lab: converted without the file's colour profile;
* samples that are not 8-bit: scaled by one rule (`serve_app.images.scaling`);
* several pages: the first, or the one asked for; several frames: the first;
* several channels: RGB, the first three, or the first, or those asked for.
"""

from __future__ import annotations

import logging
import warnings as python_warnings
from collections.abc import Iterator
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from serve_app.core.errors import ImageTooLarge, InvalidImage, InvalidRequest
from serve_app.core.limits import Limits
from serve_app.core.pixels import own_pixels
from serve_app.core.request import Reading
from serve_app.core.types import ImageInfo, ResponseWarning, RgbArray
from serve_app.images.containers import is_animated_png, plain_file
from serve_app.images.from_pillow import pillow_picture
from serve_app.images.from_tiff import tiff_picture
from serve_app.images.memory import MemoryBound
from serve_app.images.picture import Picture, check_size, lay_on_white, too_large
from serve_app.images.scaling import blocks, scaled_to_8_bits
from serve_app.images.tiff_samples import silence_libtiff

DECODING = MemoryBound(2**30)
"""Of all threads of this process together; an image of 64 million pixels takes 0.2 to 0.8 GB."""


def silence_decoders() -> None:
    """Ignore Pillow's and libtiff's warnings in this process: each odd tag of a file has one.

    For processes of the service alone; a library's import must not change its user's filters.
    """
    python_warnings.filterwarnings("ignore", module=r"PIL\.")
    logging.getLogger("PIL").setLevel(logging.CRITICAL)
    silence_libtiff()


class Decoded(NamedTuple):
    """Upright ``(H, W, 3) uint8`` RGB pixels, and what a caller should know of the file.

    Attributes:
        info: None for an 8-bit picture that is no TIFF file and was read without options.
    """

    pixels: RgbArray
    info: ImageInfo | None = None
    warnings: tuple[ResponseWarning, ...] = ()


def decode_image(data: bytes, limits: Limits, reading: Reading = Reading()) -> RgbArray:  # noqa: B008 (immutable)
    """The pixels of `read_image`."""
    return read_image(data, limits, reading).pixels


def read_image(data: bytes, limits: Limits, reading: Reading = Reading()) -> Decoded:  # noqa: B008
    """Decode an image file and apply its EXIF orientation.

    Waits while other threads decode images that leave too little of `DECODING`.  Pillow's own
    limit of about 179 million pixels applies as well.

    Returns:
        Pixels that are C-contiguous and read-only.

    Raises:
        InvalidImage: not a supported format, truncated, damaged, or without pixels.
        InvalidRequest: the file has no such page or channel.
        ImageTooLarge: its header announces more pixels than ``limits`` allow.
    """
    kind, plain = plain_file(data, limits)
    try:
        with DECODING.share() as need:
            if kind == "TIFF":
                picture = tiff_picture(plain, limits, reading, need)
            elif reading.page:
                raise InvalidRequest("page is for TIFF files; of others the first is used", "page")
            else:
                picture = pillow_picture(kind, plain, limits, reading, need)
                if kind == "PNG" and is_animated_png(data):
                    picture.animated = True  # `plain` holds its first frame alone
            return _decoded(picture, reading)
    except (InvalidImage, InvalidRequest, ImageTooLarge):
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as exc:
        raise too_large(limits) from exc
    except Exception as exc:
        # Pillow's plugins raise about twelve types for damaged files, MemoryError among them;
        # their messages may contain addresses and paths.
        raise InvalidImage(
            f"the image cannot be decoded: it is truncated, damaged, or not a usual {kind} file"
        ) from exc


def check_pixels(array: object, limits: Limits) -> RgbArray:
    """`own_pixels` of a Python caller's array, within the limits.

    Raises:
        InvalidImage: another type, shape or dtype, or without pixels.
        ImageTooLarge: larger than ``limits`` allow.
    """
    if not isinstance(array, np.ndarray):
        raise InvalidImage("an image must be a file's bytes, a numpy array, or an image_id")
    pixels = own_pixels(array)
    check_size(pixels.shape[1], pixels.shape[0], limits)
    return pixels


def _decoded(picture: Picture, reading: Reading) -> Decoded:
    """The picture as RGB, with what is to be said of it; its own samples are released."""
    scaling: Literal["none", "image", "channel"] = "none"
    if picture.samples.dtype != np.uint8:
        scaling = reading.scaling or "image"
        picture.samples = scaled_to_8_bits(
            picture.samples, scaling, picture.nodata, picture.alpha, picture.negative
        )
    elif picture.negative:
        np.subtract(255, picture.samples, out=picture.samples)
    rgb: NDArray[np.uint8] = picture.samples
    if rgb.shape[2] == 1:
        rgb = np.empty((*rgb.shape[:2], 3), np.uint8)
        for channel in range(3):  # several times as fast as all at once
            rgb[:, :, channel] = picture.samples[:, :, 0]
    rgb = np.ascontiguousarray(rgb)
    if picture.alpha is not None:
        lay_on_white(rgb, picture.alpha)
    info = None
    if picture.format == "TIFF" or picture.bits > 8 or reading != Reading():
        info = ImageInfo(
            format=picture.format,
            pages=picture.pages,
            page=picture.page,
            channels=picture.channels,
            channel=picture.used,
            dtype=picture.dtype,
            bit_depth=picture.bits,
            scaling=scaling,
            pixel_size=picture.pixel_size,
        )
    rgb.flags.writeable = False
    return Decoded(rgb, info, tuple(_warnings(picture, rgb, reading)))


def _warnings(picture: Picture, rgb: RgbArray, reading: Reading) -> Iterator[ResponseWarning]:
    if _is_blank(rgb):
        yield _warning("blank_image", "all pixels of the image are alike")
    if reading.page is None and picture.pages > 1:
        text = f"the file has {picture.pages} pages, of which page {picture.page} was used"
        yield _warning("more_pages", text + ": choose another by `page`", "page")
    elif reading.page is None and picture.animated:
        yield _warning("more_pages", "the file has several frames: one was used")
    if picture.left:
        used = ", ".join(map(str, picture.used))
        text = f"the image has {picture.channels} channels, of which {used} were used"
        yield _warning("more_channels", text + ": choose by `channel`", "channel")


def _is_blank(rgb: RgbArray) -> bool:
    return all((rgb[rows] == rgb[0, 0]).all() for rows in blocks(rgb))


def _warning(code: str, message: str, field: str | None = None) -> ResponseWarning:
    return ResponseWarning(code=code, message=message, field=field)
