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

import io
import struct
import warnings as python_warnings
import zlib
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image
from PIL.TiffImagePlugin import TiffImageFile

from serve_app.core.errors import ImageTooLarge, InvalidImage, InvalidRequest
from serve_app.core.limits import Limits
from serve_app.core.pixels import own_pixels
from serve_app.core.request import Reading
from serve_app.core.types import ImageInfo, PixelSize, ResponseWarning, RgbArray
from serve_app.images import tiff
from serve_app.images.containers import plain_file
from serve_app.images.scaling import scaled_to_8_bits

_DEEP_MODES = ("I", "F", "I;16", "I;16B", "I;16L", "I;16N")
_OPAQUE = [2.0**bits - 1 for bits in (8, 10, 12, 14, 16)]
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


def silence_decoders() -> None:
    """Ignore Pillow's and libtiff's warnings in this process: each odd tag of a file has one.

    For processes of the service alone; a library's import must not change its user's filters.
    """
    python_warnings.filterwarnings("ignore", module=r"PIL\.")
    tiff.silence_libtiff()


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

    Pillow's own limit of about 179 million pixels applies as well.

    Returns:
        Pixels that are C-contiguous and read-only.

    Raises:
        InvalidImage: not a supported format, truncated, damaged, or without pixels.
        InvalidRequest: the file has no such page or channel.
        ImageTooLarge: its header announces more pixels than ``limits`` allow.
    """
    kind, plain = plain_file(data, limits)
    try:
        if kind == "TIFF":
            picture = _tiff(plain, limits, reading)
        elif reading.page:
            raise InvalidRequest("page is for TIFF files; of others the first is used", "page")
        else:
            picture = _by_pillow(kind, plain, limits, reading)
            if kind == "PNG" and b"acTL" in data[: data.find(b"IDAT")]:
                picture = replace(picture, animated=True)  # `plain` holds its first frame alone
        return _decoded(picture, reading)
    except (InvalidImage, InvalidRequest, ImageTooLarge):
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
    """`own_pixels` of a Python caller's array, within the limits.

    Raises:
        InvalidImage: another type, shape or dtype, or without pixels.
        ImageTooLarge: larger than ``limits`` allow.
    """
    if not isinstance(array, np.ndarray):
        raise InvalidImage("an image must be a file's bytes, a numpy array, or an image_id")
    pixels = own_pixels(array)
    _check_size(pixels.shape[1], pixels.shape[0], limits)
    return pixels


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


@dataclass(frozen=True, kw_only=True)
class _Picture:
    """A file's samples on the way to RGB.

    Attributes:
        samples: ``(H, W, 1 or 3)``, of any real dtype.
        alpha: ``(H, W)``, 0 to 1.
        used, left: channels that were read, and how many colours were not.
        negative: zero is white.
    """

    format: str
    samples: NDArray[Any]
    alpha: NDArray[np.float32] | None = None
    negative: bool = False
    nodata: float | None = None
    pages: int = 1
    page: int = 0
    channels: int = 3
    used: tuple[int, ...] = (0, 1, 2)
    left: int = 0
    dtype: str = "uint8"
    bits: int = 8
    pixel_size: PixelSize | None = None
    animated: bool = False


def _decoded(picture: _Picture, reading: Reading) -> Decoded:
    """The picture as RGB, with what is to be told of it."""
    scaling: Literal["none", "image", "channel"] = "none"
    warnings: list[ResponseWarning] = []
    samples = picture.samples
    if samples.dtype != np.uint8:
        scaling = reading.scaling
        visible = None if picture.alpha is None else picture.alpha > 0
        samples = scaled_to_8_bits(samples, scaling, picture.nodata, visible)
    rgb: NDArray[np.uint8] = samples
    if samples.shape[2] == 1 or picture.negative or picture.alpha is not None:
        rgb = np.empty((*samples.shape[:2], 3), np.uint8)
        rgb[:] = 255 - samples if picture.negative else samples
    if picture.alpha is not None:
        _lay_on_white(rgb, picture.alpha)
    if _is_blank(rgb):
        warnings.append(_warning("blank_image", "all pixels of the image are alike"))
    if picture.pages > 1:
        text = f"the file has {picture.pages} pages, of which page {picture.page} was used"
        if not reading.page:
            warnings.append(_warning("more_pages", text + ": choose another by `page`", "page"))
    elif picture.animated:
        warnings.append(_warning("more_pages", "the file has several frames: one was used"))
    if picture.left:
        used = ", ".join(map(str, picture.used))
        text = f"the image has {picture.channels} channels, of which {used} were used"
        warnings.append(_warning("more_channels", text + ": choose by `channel`", "channel"))
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
    return Decoded(_read_only(np.ascontiguousarray(rgb)), info, tuple(warnings))


def _is_blank(rgb: NDArray[np.uint8]) -> bool:
    rows = max(1, _BLOCK // rgb.shape[1])
    return all((rgb[top : top + rows] == rgb[0, 0]).all() for top in range(0, len(rgb), rows))


def _warning(code: str, message: str, field: str | None = None) -> ResponseWarning:
    return ResponseWarning(code=code, message=message, field=field)


def _lay_on_white(rgb: NDArray[np.uint8], alpha: NDArray[np.float32]) -> None:
    rows = max(1, _BLOCK // rgb.shape[1])
    for top in range(0, rgb.shape[0], rows):
        part, cover = rgb[top : top + rows], alpha[top : top + rows, :, np.newaxis]
        part[:] = np.rint(part * cover + 255 * (1 - cover))


def _no_channel(channels: int, channel: int) -> InvalidRequest:
    return InvalidRequest(
        f"the image has {channels} channels, numbered from 0: there is no channel {channel}",
        "channel",
    )


# TIFF


def _tiff(data: bytes, limits: Limits, reading: Reading) -> _Picture:
    pages = tiff.pages_of(data)
    page = tiff.chosen(pages, reading.page)
    _check_size(page.width, page.height, limits)
    tiff.check(page, limits)
    size = page.pixel_size()
    about: dict[str, Any] = {
        "format": "TIFF",
        "pages": len(pages),
        "page": reading.page,
        "channels": page.channels,
        "dtype": page.dtype_name,
        "bits": page.bits[0],
        "pixel_size": None if size is None else PixelSize(x=size[0], y=size[1], unit=size[2]),
    }
    if not tiff.ours(page):
        # The header names the page, so that it is Pillow's first.
        at = struct.pack(page.order + ("Q" if page.big else "I"), page.offset)
        start = 8 if page.big else 4
        try:
            picture = _by_pillow(
                "TIFF", data[:start] + at + data[start + len(at) :], limits, reading
            )
        except (InvalidImage, InvalidRequest, ImageTooLarge):
            raise
        except Exception as exc:
            raise InvalidImage(
                f"this {page.title} cannot be decoded: it is truncated, damaged, or of an unusual "
                "kind"
            ) from exc
        return replace(picture, **about)
    if page.photometric == tiff.CMYK:
        return _cmyk(page, limits, reading, about)
    colours = 3 if page.photometric == tiff.RGB else 1
    if page.channels < colours:
        raise InvalidImage(f"this RGB TIFF has {page.channels} channels, fewer than three")
    extra = dict(enumerate(page.extra, page.channels - len(page.extra)))
    alpha = next((n for n, kind in extra.items() if kind in (1, 2) and n >= colours), None)
    own = [n for n in range(page.channels) if n != alpha]
    used = reading.channel or tuple(own[:3] if len(own) >= 3 else own[:1])
    for channel in used:
        if channel >= page.channels:
            raise _no_channel(page.channels, channel)
    if alpha in used:
        alpha = None  # asked for as a channel of its own
    found = tiff.samples(page, [*used, *([] if alpha is None else [alpha])], limits)
    found = _upright_array(found, page.orientation)
    cover: NDArray[np.float32] | None = None
    if alpha is not None:
        cover = _cover(found[:, :, -1])
        found = found[:, :, :-1]
        if extra[alpha] == 1:
            found = _without_alpha(found, cover)
    return _Picture(
        **about,
        samples=found,
        alpha=cover,
        negative=page.photometric == 0,
        nodata=page.nodata,
        used=used,
        left=0 if reading.channel else len(own) - len(used),
    )


def _cover(alpha: NDArray[Any]) -> NDArray[np.float32]:
    """Alpha as 0 to 1."""
    with np.errstate(all="ignore"):
        values = np.nan_to_num(alpha.astype(np.float32))
    cover: NDArray[np.float32] = values / np.float32(_opaque(float(values.max()), alpha.dtype))
    return cover.clip(0, 1)


def _opaque(highest: float, dtype: np.dtype[Any]) -> float:
    """The alpha of an opaque pixel where ``highest`` occurs: samples may have fewer bits than their
    type, as a camera's 12 in 16, and those of floats may be 0 to 1 or those of integers."""
    of_type = 1.0 if dtype.kind == "f" else float(np.iinfo(dtype).max)
    usual = [1.0, *_OPAQUE] if dtype.kind == "f" else [n for n in _OPAQUE if n < of_type]
    return next((alpha for alpha in usual if highest <= alpha), of_type)


def _without_alpha(samples: NDArray[Any], cover: NDArray[np.float32]) -> NDArray[Any]:
    """Samples that were multiplied with their alpha, as they were before."""
    result = np.empty_like(samples)
    rows = max(1, _BLOCK // samples.shape[1])
    for top in range(0, len(samples), rows):
        with np.errstate(all="ignore"):
            part = samples[top : top + rows] / cover[top : top + rows, :, np.newaxis]
        part = np.nan_to_num(part, posinf=0.0, neginf=0.0)
        if samples.dtype.kind != "f":
            limits = np.iinfo(samples.dtype)
            part = np.rint(part).clip(limits.min, limits.max)
        result[top : top + rows] = part
    return result


def _cmyk(
    page: tiff.Directory, limits: Limits, reading: Reading, about: dict[str, Any]
) -> _Picture:
    inks = _upright_array(tiff.samples(page, [0, 1, 2, 3], limits), page.orientation)
    if inks.dtype == np.uint16:
        # Ink amounts mean the same in every file, so they are not stretched.
        inks = (inks >> 8).astype(np.uint8)
    image = Image.fromarray(np.ascontiguousarray(inks), mode="CMYK")
    picture = _chosen_channels(_rgb_pixels(image), 3, reading)
    return replace(picture, **about)


def _upright_array(samples: NDArray[Any], orientation: int) -> NDArray[Any]:
    if orientation in (5, 6, 7, 8):
        samples = samples.transpose(1, 0, 2)
    if orientation in (3, 4, 7, 8):
        samples = samples[::-1]
    if orientation in (2, 3, 6, 7):
        samples = samples[:, ::-1]
    return samples


# Other formats


def _by_pillow(kind: str, data: bytes, limits: Limits, reading: Reading) -> _Picture:
    # By its index, not its content: an animation may have thousands of frames.
    with Image.open(io.BytesIO(data), formats=(kind,)) as image:
        _check_size(image.width, image.height, limits)
        animated = kind != "TIFF" and bool(getattr(image, "is_animated", False))
        name = kind if image.format != "MPO" else "JPEG"
        if kind == "PNG" and data[24] == 16 and data[25] in (2, 4, 6):
            picture = _deep_png(data, reading)
        else:
            image.load()
            picture = _loaded(_upright(image), image, reading)
        return replace(picture, format=name, animated=animated)


def _loaded(upright: Image.Image, image: Image.Image, reading: Reading) -> _Picture:
    """A picture that Pillow has read."""
    if upright.mode in _DEEP_MODES:
        samples = np.asarray(upright)
        kind = {"F": "float32", "I": "int32"}.get(upright.mode, "uint16")
        samples = samples[:, :, np.newaxis]
        return _deep(samples, kind, _key(samples, image), reading)
    gray = upright.mode in ("1", "L", "LA", "La")
    return _chosen_channels(_rgb_pixels(upright), 1 if gray else 3, reading)


def _chosen_channels(rgb: NDArray[np.uint8], channels: int, reading: Reading) -> _Picture:
    if not reading.channel:
        used = tuple(range(channels))
        return _Picture(format="", samples=rgb, channels=channels, used=used)
    for channel in reading.channel:
        if channel >= channels:
            raise _no_channel(channels, channel)
    return _Picture(
        format="", samples=rgb[:, :, list(reading.channel)], channels=channels, used=reading.channel
    )


def _deep(
    samples: NDArray[Any], dtype: str, alpha: NDArray[np.float32] | None, reading: Reading
) -> _Picture:
    """A picture of one or three channels with more than 8 bits."""
    channels = samples.shape[2]
    for channel in reading.channel:
        if channel >= channels:
            raise _no_channel(channels, channel)
    used = reading.channel or tuple(range(channels))
    if reading.channel:
        samples = samples[:, :, list(used)]
    return _Picture(
        format="",
        samples=samples,
        alpha=alpha,
        channels=channels + (alpha is not None),
        used=used,
        dtype=dtype,
        bits=samples.dtype.itemsize * 8,
    )


def _deep_png(data: bytes, reading: Reading) -> _Picture:
    """A PNG file of 16 bits with colours or alpha, of which Pillow keeps eight bits at a time."""
    colour = data[25]
    halves = []
    for order in ("B", "L"):  # as big-endian the upper bytes, as little-endian the lower ones
        with Image.open(
            io.BytesIO(_as_rgba(data) if colour == 4 else data), formats=("PNG",)
        ) as image:
            if colour != 4:
                # A copy of Pillow's own instruction, with another order of bytes.
                image.tile = [image.tile[0]._replace(args=f"{image.mode};16{order}")]
            image.load()
            halves.append(np.asarray(_upright(image)))
        if colour == 4:
            break
    if colour == 4:
        both = halves[0].astype(np.uint16)
        samples = np.stack([both[..., 0] << 8 | both[..., 1], both[..., 2] << 8 | both[..., 3]], -1)
    else:
        samples = halves[0].astype(np.uint16) << 8 | halves[1]
    if colour == 2:
        return _deep(samples, "uint16", _key(samples, image), reading)
    return _deep(samples[:, :, :-1], "uint16", _cover(samples[:, :, -1]), reading)


def _key(samples: NDArray[Any], image: Image.Image) -> NDArray[np.float32] | None:
    """0 where a PNG file's samples are those of its transparent colour, else 1."""
    colour = image.info.get("transparency")
    if colour is None:
        return None
    visible: NDArray[np.bool_] = (samples != np.array(colour)).any(axis=2)
    return visible.astype(np.float32)


def _as_rgba(data: bytes) -> bytes:
    """A PNG file of 16-bit gray and alpha as one of RGBA, which has the same bytes and filters."""
    header = data[12:24] + b"\x08\x06" + data[26:29]
    return data[:12] + header + struct.pack(">I", zlib.crc32(header)) + data[33:]


def _rgb_pixels(image: Image.Image) -> NDArray[np.uint8]:
    """Any 8-bit mode of Pillow → ``(H, W, 3) uint8``."""
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
