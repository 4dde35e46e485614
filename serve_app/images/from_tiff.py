"""TIFF files as pictures; what `serve_app.images.tiff_samples` does not read is left to Pillow."""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from serve_app.core.errors import ImageTooLarge, InvalidImage, InvalidRequest
from serve_app.core.limits import Limits
from serve_app.core.request import Reading
from serve_app.core.types import PixelSize
from serve_app.images.from_pillow import pillow_picture
from serve_app.images.picture import Picture, check_size, divide_by_alpha, upright, used_channels
from serve_app.images.scaling import blocks
from serve_app.images.tiff_directory import CMYK, WHITE_IS_ZERO, Directory, chosen, pages_of
from serve_app.images.tiff_samples import check, samples


def tiff_picture(
    data: bytes, limits: Limits, reading: Reading, need: Callable[[int], None]
) -> Picture:
    """A page of a TIFF file.

    Args:
        need: called with the bytes that will be needed, before they are.

    Raises:
        InvalidImage: damaged, or of a kind that is not read.
        InvalidRequest: there is no such page or channel.
        ImageTooLarge: more pixels, samples or work than ``limits`` allow.
    """
    pages = pages_of(data)
    page = chosen(pages, reading.page or 0)
    check_size(page.width, page.height, limits)
    check(page, limits)
    read = _bytewise if page.bytewise else _by_pillow
    size = page.pixel_size()
    return replace(
        read(page, limits, reading, need),
        format="TIFF",
        pages=len(pages),
        page=reading.page or 0,
        dtype=page.dtype_name,
        bits=page.bits[0],
        pixel_size=None if size is None else PixelSize(x=size[0], y=size[1], unit=size[2]),
    )


def _shown(page: Directory) -> int:
    """Colours of the page when it is shown, see `serve_app.images.picture`."""
    return 1 if page.is_gray else 3


def _by_pillow(
    page: Directory, limits: Limits, reading: Reading, need: Callable[[int], None]
) -> Picture:
    # The header names the page, so that it is Pillow's first.
    at = struct.pack(page.order + ("Q" if page.big else "I"), page.offset)
    start = 8 if page.big else 4
    data = page.data[:start] + at + page.data[start + len(at) :]
    try:
        picture = pillow_picture("TIFF", data, limits, reading, need)
    except (InvalidImage, InvalidRequest, ImageTooLarge):
        raise
    except Exception as exc:
        raise InvalidImage(
            f"this {page.title} cannot be decoded: it is truncated, damaged, or of an unusual kind"
        ) from exc
    # Pillow leaves out channels that it has no mode for.
    more = max(0, _shown(page) + page.channels - page.colours - picture.channels)
    picture.channels += more
    picture.left += 0 if reading.channel else more
    return picture


def _bytewise(
    page: Directory, limits: Limits, reading: Reading, need: Callable[[int], None]
) -> Picture:
    shown = _shown(page)
    channels = shown + page.channels - page.colours
    extra = dict(enumerate(page.extra, channels - len(page.extra)))
    alpha = next((n for n, kind in extra.items() if kind in (1, 2) and n >= shown), None)
    used, left = used_channels(channels, alpha, reading.channel)
    if alpha in used:
        alpha = None  # chosen as a channel of its own
    wanted = [*used, *([] if alpha is None else [alpha])]
    need(_bytes_needed(page, wanted))
    found = _shown_samples(page, wanted, limits, alpha is not None and extra[alpha] == 1)
    found = upright(found, page.orientation)
    cover = None
    if alpha is not None:
        found, cover = found[:, :, :-1], found[:, :, -1]
    return Picture(
        samples=found,
        alpha=cover,
        negative=page.photometric == WHITE_IS_ZERO,
        nodata=page.nodata,
        channels=channels,
        used=used,
        left=left,
    )


def _bytes_needed(page: Directory, wanted: list[int]) -> int:
    """At most: samples as they are stored, as they are shown, RGB, and a strip or tile, twice."""
    across, down = page.piece_size
    piece = across * down * (page.channels // page.planes) * page.bits[0] // 8
    stored = (len(wanted) + page.colours - _shown(page)) * page.bits[0] // 8
    return page.width * page.height * (stored + len(wanted) + 3) + 2 * piece


def _shown_samples(
    page: Directory, wanted: list[int], limits: Limits, premultiplied: bool
) -> NDArray[Any]:
    """The ``(H, W, len(wanted))`` samples of channels as they are shown.

    Args:
        premultiplied: with the last of the channels, which is undone.
    """
    if page.is_palette:
        return _by_palette(page, samples(page, [0], limits), wanted)
    # Each colour needs all four inks.
    inks = page.photometric == CMYK
    stored = [0, 1, 2, 3, *(n + 1 for n in wanted if n >= 3)] if inks else wanted
    found = samples(page, stored, limits)
    if premultiplied:
        divide_by_alpha(found[:, :, :-1], found[:, :, -1])
    return _by_inks(found, wanted) if inks else found


def _by_palette(page: Directory, indexes: NDArray[Any], wanted: list[int]) -> NDArray[np.uint8]:
    colours = page.numbers(320)
    if len(colours) != 3 * 256:
        raise InvalidImage("the palette of the TIFF file is missing or incomplete")
    table = (np.array(colours).reshape(3, 256).T >> 8).astype(np.uint8)[:, wanted]
    result = np.empty((*indexes.shape[:2], len(wanted)), np.uint8)
    for rows in blocks(result):
        result[rows] = table[indexes[rows, :, 0]]
    return result


def _by_inks(stored: NDArray[Any], wanted: list[int]) -> NDArray[np.uint8]:
    """Colours of the inks in the first four channels, and the others as they are.

    Ink amounts mean the same in every file, so 16 bits are not stretched to 8.
    """
    others = iter(range(3, len(wanted) + 3))
    places = [n if n < 3 else next(others) for n in wanted]
    result = np.empty((*stored.shape[:2], len(wanted)), np.uint8)
    for rows in blocks(stored):
        part = stored[rows]
        if part.dtype == np.uint16:
            part = (part >> 8).astype(np.uint8)
        inks = Image.fromarray(np.ascontiguousarray(part[:, :, :4]), mode="CMYK")
        shown = np.concatenate([np.asarray(inks.convert("RGB")), part[:, :, 4:]], axis=2)
        result[rows] = shown[:, :, places]
    return result
