"""Files that Pillow reads, as pictures."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image
from PIL.TiffImagePlugin import TiffImageFile

from serve_app.core.limits import Limits
from serve_app.core.request import Reading
from serve_app.images.picture import Picture, check_size, upright, used_channels
from serve_app.images.scaling import blocks

_DEEP_MODES = {"F": "float32", "I": "int32"} | dict.fromkeys(
    ("I;16", "I;16B", "I;16L", "I;16N"), "uint16"
)
_GRAY_MODES = ("1", "L", "LA", "La")
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_BYTES_PER_PIXEL = 4
"""Of Pillow's images with colours or alpha; others have fewer."""


def pillow_picture(
    kind: str, data: bytes, limits: Limits, reading: Reading, need: Callable[[int], None]
) -> Picture:
    """The first picture of a file.

    Args:
        kind: the format, in Pillow's terms.
        need: called with the bytes that will be needed, before they are.

    Raises:
        InvalidRequest: there is no such channel.
        ImageTooLarge: more pixels than ``limits`` allow.
        Exception: whatever Pillow raises for damaged files.
    """
    image: Image.Image = Image.open(io.BytesIO(data), formats=(kind,))
    check_size(image.width, image.height, limits)
    # By its index, not its content: an animation may have thousands of frames.
    animated = kind != "TIFF" and bool(getattr(image, "is_animated", False))
    name = kind if image.format != "MPO" else "JPEG"
    if kind == "PNG" and data[24] == 16 and data[25] in (2, 4, 6):
        picture = _deep_png(data, image, reading, need)
    else:
        need(image.width * image.height * 3 * _BYTES_PER_PIXEL)
        image.load()
        if kind == "PNG" and data[25] == 0:
            _scale_key(image.info, data[24])
        if not isinstance(image, TiffImageFile):  # Pillow itself turns these
            turn = _TURNS.get(_orientation(image))
            image = image if turn is None else image.transpose(turn)
        if image.mode in _DEEP_MODES:
            samples = _array(image)
            picture = _deep(samples, _DEEP_MODES[image.mode], _key(samples, image), reading)
        else:
            picture = _flat(image, reading)
    picture.format, picture.animated = name, animated
    return picture


def _orientation(image: Image.Image) -> int:
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation)
    except Exception:
        # Damaged metadata must not fail the request.
        return 1
    return orientation if isinstance(orientation, int) else 1


def _scale_key(info: dict[Any, Any], depth: int) -> None:
    """Scale a gray PNG file's transparent colour as Pillow scales its samples to 8 bits."""
    key = info.get("transparency")
    if depth in (2, 4) and isinstance(key, int):
        most = 2**depth - 1
        info["transparency"] = (key & most) * (255 // most)


def _array(image: Image.Image) -> NDArray[Any]:
    """The ``(H, W, 1)`` samples of an image of one deep channel, copied in blocks."""
    first = np.asarray(image.crop((0, 0, 1, 1)))
    samples = np.empty((image.height, image.width, 1), first.dtype)
    for rows in blocks(samples):
        samples[rows, :, 0] = np.asarray(image.crop((0, rows.start, image.width, rows.stop)))
    return samples


# 8 bits


def _flat(image: Image.Image, reading: Reading) -> Picture:
    """A picture of any 8-bit mode; what is transparent is composited over white."""
    colours = 1 if image.mode in _GRAY_MODES else 3
    alpha = colours if image.has_transparency_data else None
    channels = colours + (alpha is not None)
    used, left = used_channels(channels, alpha, reading.channel)
    # Transparency that was chosen as a channel is not composited.
    kind = "RGBA" if alpha in used else "L" if channels == 1 else "RGB"
    places: list[int] | slice = [3 if n == alpha else n for n in used]
    if used == tuple(range(len(used))):
        places = slice(len(used))
    samples = np.empty((image.height, image.width, len(used)), np.uint8)
    for rows in blocks(samples):
        part = image.crop((0, rows.start, image.width, rows.stop))
        shown = np.asarray(_converted(part, kind))
        samples[rows] = shown.reshape(*shown.shape[:2], -1)[:, :, places]
    return Picture(samples=samples, channels=channels, used=used, left=left)


def _converted(image: Image.Image, kind: str) -> Image.Image:
    """Any 8-bit mode → ``L``, ``RGB``, ``RGBA``; Lab through littleCMS, the others by formula."""
    if kind == "RGB" and image.has_transparency_data:
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image.convert("RGBA")).convert("RGB")
    return image.convert(kind)


# More than 8 bits


def _deep(
    samples: NDArray[Any], dtype: str, alpha: NDArray[Any] | None, reading: Reading
) -> Picture:
    """A picture of one or three channels, and transparency as one more."""
    colours = samples.shape[2]
    transparent = None if alpha is None else colours
    channels = colours + (alpha is not None)
    used, left = used_channels(channels, transparent, reading.channel)
    bits = samples.dtype.itemsize * 8
    if alpha is not None and transparent in used:
        samples = np.stack([alpha if n == transparent else samples[:, :, n] for n in used], axis=2)
        alpha = None
    elif len(used) == 1:
        samples = samples[:, :, used[0] : used[0] + 1]
    elif used != (0, 1, 2):
        samples = samples[:, :, list(used)]
    return Picture(
        samples=samples,
        alpha=alpha,
        channels=channels,
        used=used,
        left=left,
        dtype=dtype,
        bits=bits,
    )


def _deep_png(
    data: bytes, image: Image.Image, reading: Reading, need: Callable[[int], None]
) -> Picture:
    """A PNG file of 16 bits with colours or alpha, of which Pillow keeps eight bits at a time."""
    width, height = image.size
    colour = data[25]
    channels = {2: 3, 4: 2, 6: 4}[colour]
    chosen = 2 * len(reading.channel)
    need(width * height * (2 * channels + max(_BYTES_PER_PIXEL, chosen + 3)))
    samples = np.zeros((height, width, channels), np.uint16)
    if colour == 4:
        image = Image.open(io.BytesIO(_as_rgba(data)), formats=("PNG",))
        image.load()
        for rows in blocks(samples):
            part = np.asarray(image.crop((0, rows.start, width, rows.stop)))
            samples[rows] = np.ascontiguousarray(part).view(">u2")
    else:
        for order, shift in (("B", 8), ("L", 0)):
            # As big-endian the upper bytes, as little-endian the lower ones: a copy of Pillow's
            # own instruction, with another order of bytes.
            image = Image.open(io.BytesIO(data), formats=("PNG",))
            image.tile = [image.tile[0]._replace(args=f"{image.mode};16{order}")]
            image.load()
            for rows in blocks(samples):
                part = np.asarray(image.crop((0, rows.start, width, rows.stop)))
                samples[rows] |= part.astype(np.uint16) << shift
    samples = upright(samples, _orientation(image))
    if colour == 2:
        return _deep(samples, "uint16", _key(samples, image), reading)
    return _deep(samples[:, :, :-1], "uint16", samples[:, :, -1], reading)


def _key(samples: NDArray[Any], image: Image.Image) -> NDArray[Any] | None:
    """``(H, W)``, of the samples' dtype: 0 where a PNG file's samples are those of its transparent
    colour, else the greatest value; None if it has none."""
    colour = image.info.get("transparency")
    if colour is None:
        return None
    alpha = np.empty(samples.shape[:2], samples.dtype)
    for rows in blocks(samples):
        visible = (samples[rows] != np.array(colour)).any(axis=2)
        alpha[rows] = np.where(visible, np.iinfo(samples.dtype).max, 0)
    return alpha


def _as_rgba(data: bytes) -> bytes:
    """A PNG file of 16-bit gray and alpha as one of RGBA, which has the same bytes and filters."""
    header = data[12:24] + b"\x08\x06" + data[26:29]
    return data[:12] + header + struct.pack(">I", zlib.crc32(header)) + data[33:]
