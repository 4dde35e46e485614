"""Reduces an uploaded image file to what Pillow needs: the first picture and little else.

Pillow bounds the pixels of an image, but not all the work that the rest of a file can cause.  A
file of some megabytes can hold thousands of compressed colour profiles (PNG), of JPEG scans, of
comment blocks (GIF) or of strips (TIFF), each cheap and together minutes of work.  So before
Pillow opens a file, its container is parsed here: metadata that does not change the pixels is
removed, and counts that no camera or program writes are rejected.

Sources of the layouts: ITU-T T.81 annex B (JPEG), W3C PNG third edition section 5, GIF89a
specification, TIFF 6.0 section 2 and the BigTIFF design, Microsoft's ``BITMAPINFOHEADER``.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable

from serve_app.core.errors import ImageTooLarge, InvalidImage
from serve_app.core.limits import Limits

FORMATS = "JPEG, PNG, WebP, TIFF, BMP or GIF"

MAX_JPEG_SCANS = 50
"""A progressive JPEG has about ten; each one is a pass over the whole image."""

MAX_PARTS = 65_536
"""Maximum segments, chunks, blocks or tags of one file."""

MAX_TIFF_PIECES = 262_144
"""Maximum strips or tiles: enough for 16 x 16 tiles over 64 million pixels."""

_PNG_KEPT = {b"IHDR", b"PLTE", b"tRNS", b"eXIf", b"IDAT", b"IEND"}
# RSTn (D0-D7) and TEM (01) have no content and may occur inside a scan.
_JPEG_MARKER = re.compile(rb"\xff([\x02-\xcf\xd8-\xfe])")
# TIFF's integer types by number; signed ones read as unsigned: sides are not negative.
_TIFF_INTEGERS = {1: "B", 3: "H", 4: "I", 6: "B", 8: "H", 9: "I", 16: "Q", 17: "Q"}


def plain_file(data: bytes, limits: Limits) -> tuple[str, bytes]:
    """Return the format, in Pillow's terms, and the reduced bytes of an image file.

    Raises:
        InvalidImage: an unsupported format, truncated within the header, or with excessive counts.
        ImageTooLarge: a TIFF's tiles are larger than the limit for images.
    """
    if not data:
        raise InvalidImage("the image is empty: no bytes were sent")
    for start, name, reduce in _READERS:
        if data.startswith(start) and (name != "WEBP" or data[8:12] == b"WEBP"):
            try:
                return name, reduce(data, limits)
            except (struct.error, IndexError) as exc:
                raise InvalidImage("the image file is truncated within its header") from exc
    raise InvalidImage(f"the bytes are not an image in a supported format: send {FORMATS}")


def _too_many(what: str) -> InvalidImage:
    return InvalidImage(f"the image file has too many {what}: re-save the file and retry")


def _jpeg(data: bytes, limits: Limits) -> bytes:
    """Keep these segments before the first scan: tables, frame, JFIF, Adobe, first EXIF."""
    kept = [data[:2]]
    first_scan: int | None = None
    seen_exif = False
    scans = 0
    end = 2
    for _ in range(MAX_PARTS):
        # Search like libjpeg, so that no scan escapes the count.
        match = _JPEG_MARKER.search(data, end)
        if match is None or match[1] == b"\xd9":
            break
        marker, end = match[1][0], match.end()
        if marker < 0xC0 or marker == 0xD8:
            continue
        begin = end - 2
        end += int.from_bytes(data[end : end + 2], "big")
        if marker == 0xDA:
            scans += 1
            if scans > MAX_JPEG_SCANS:
                raise _too_many("progressive scans")
            first_scan = begin if first_scan is None else first_scan
        if first_scan is None:
            exif = marker == 0xE1 and data[begin + 4 : begin + 10] == b"Exif\0\0"
            metadata = 0xE0 <= marker <= 0xEF or marker == 0xFE
            if not metadata or marker in (0xE0, 0xEE) or (exif and not seen_exif):
                kept.append(data[begin:end])
            seen_exif |= exif
    else:
        raise _too_many("segments")
    if first_scan is None:
        raise InvalidImage("the JPEG file ends before its pixels")
    kept.append(data[first_scan:])
    return b"".join(kept)


def _png(data: bytes, limits: Limits) -> bytes:
    """Keep the chunks of the first picture: no text, profiles or animation."""
    kept = [data[:8]]
    at = 8
    for _ in range(MAX_PARTS):
        kind = data[at + 4 : at + 8]
        end = at + 12 + int.from_bytes(data[at : at + 4], "big")
        # An unknown critical chunk (upper case) stays, for Pillow to reject.
        if kind in _PNG_KEPT or kind[:1].isupper():
            kept.append(data[at:end])
        if kind == b"IEND" or end >= len(data):
            return b"".join(kept)
        at = end
    raise _too_many("chunks")


def _gif(data: bytes, limits: Limits) -> bytes:
    """Keep the screen descriptor, the first frame's transparency and all that follows."""
    at = 13 + (3 << (data[10] & 7) + 1 if data[10] & 0x80 else 0)
    kept = [data[:at]]
    for _ in range(MAX_PARTS):
        if data[at] != 0x21:
            break
        if data[at + 1] == 0xF9 and data[at + 2] == 4:
            # Without the disposal method, which concerns only later frames.
            kept = [kept[0], b"!\xf9\x04", bytes([data[at + 3] & 1]), data[at + 4 : at + 8]]
        at += 2
        for _ in range(MAX_PARTS):
            size = data[at]
            at += 1 + size
            if size == 0:
                break
        else:
            raise _too_many("comment blocks")
    else:
        raise _too_many("blocks")
    return b"".join((*kept, data[at:]))


def _bmp(data: bytes, limits: Limits) -> bytes:
    """Reject run-length encoding: hardly used, and Pillow decodes it in Python."""
    header = struct.unpack_from("<I", data, 14)[0]
    if header >= 40 and struct.unpack_from("<I", data, 30)[0] in (1, 2):
        raise InvalidImage("run-length encoded BMP is not supported: save the image as PNG")
    return data


def _webp(data: bytes, limits: Limits) -> bytes:
    return data


def _tiff(data: bytes, limits: Limits) -> bytes:
    """Check the first directory: number of tags, strips and tiles, and the tile size."""
    order = "<" if data.startswith(b"II") else ">"
    big = struct.unpack_from(order + "H", data, 2)[0] == 43
    count_format, entry_format, word = ("Q", "HHQ", 8) if big else ("H", "HHI", 4)
    at = struct.unpack_from(order + ("Q" if big else "I"), data, word)[0]
    count = struct.unpack_from(order + count_format, data, at)[0]
    if count > MAX_PARTS:
        raise _too_many("tags")
    at += struct.calcsize(count_format)
    tile = [1, 1]
    for _ in range(count):
        tag, kind, values = struct.unpack_from(order + entry_format, data, at)
        at += struct.calcsize("=" + entry_format)
        if tag in (273, 279, 324, 325) and values > MAX_TIFF_PIECES:
            raise _too_many("strips or tiles")
        if tag in (322, 323):
            number = _TIFF_INTEGERS.get(kind)
            if number is None or struct.calcsize("=" + number) > word:
                raise InvalidImage("the TIFF file's tile size is not a valid integer")
            side = struct.unpack_from(order + number, data, at)[0]
            tile[tag - 322] = max(tile[tag - 322], side)
        at += word
    # libtiff decodes whole tiles, however small the image in them.
    if max(tile) > limits.max_image_side or tile[0] * tile[1] > limits.max_image_pixels:
        raise ImageTooLarge("the TIFF file's tiles are larger than the limit for images")
    return data


_Reader = Callable[[bytes, Limits], bytes]
_READERS: tuple[tuple[bytes, str, _Reader], ...] = (
    (b"\xff\xd8\xff", "JPEG", _jpeg),
    (b"\x89PNG\r\n\x1a\n", "PNG", _png),
    (b"RIFF", "WEBP", _webp),
    (b"II*\0", "TIFF", _tiff),
    (b"MM\0*", "TIFF", _tiff),
    (b"II+\0", "TIFF", _tiff),
    (b"MM\0+", "TIFF", _tiff),
    (b"BM", "BMP", _bmp),
    (b"GIF87a", "GIF", _gif),
    (b"GIF89a", "GIF", _gif),
)
