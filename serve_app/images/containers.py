"""Reduces an uploaded image file to what Pillow needs: the first picture and little else.

Pillow bounds the pixels of an image, but not all the work that the rest of a file can cause.  A
file of some megabytes can hold thousands of compressed colour profiles (PNG), of JPEG scans, of
comment blocks (GIF) or of strips (TIFF), each cheap and together minutes of work.  So before
Pillow opens a file, its container is parsed here: metadata that does not change the pixels is
removed, and counts that no camera or program writes are rejected.

Sources of the layouts: ITU-T T.81 annex B (JPEG), W3C PNG third edition section 5, GIF89a
specification, Microsoft's ``BITMAPINFOHEADER``, ITU-T T.800 annex A (JPEG 2000), ISO/IEC 14496-12.
"""

from __future__ import annotations

import importlib
import importlib.util
import itertools
import re
import struct
from collections.abc import Callable, Iterator
from functools import cache

from serve_app.core.errors import ImageTooLarge, InvalidImage
from serve_app.core.limits import Limits

FORMATS = "JPEG, PNG, WebP, TIFF, BMP, GIF, AVIF or JPEG 2000"

MAX_JPEG_SCANS = 50
"""A progressive JPEG has about ten; each one is a pass over the whole image."""

MAX_PARTS = 65_536
"""Maximum segments, chunks or blocks of one file."""

_PNG_KEPT = {b"IHDR", b"PLTE", b"tRNS", b"eXIf", b"IDAT", b"IEND"}
# RSTn (D0-D7) and TEM (01) have no content and may occur inside a scan.
_JPEG_MARKER = re.compile(rb"\xff([\x02-\xcf\xd8-\xfe])")


_CODESTREAM = b"\xff\x4f\xff\x51"
_SOF = (0xC0, 0xC1, 0xC2)
_OTHER_JPEG = {0xC3: "lossless JPEG", 0xC7: "lossless JPEG", 0xCB: "lossless JPEG"}


def plain_file(data: bytes, limits: Limits) -> tuple[str, bytes]:
    """Return the format, in Pillow's terms, and the reduced bytes of an image file.

    Raises:
        InvalidImage: an unsupported format, truncated within the header, or with excessive counts.
        ImageTooLarge: a JPEG 2000 file's samples are larger than the limits allow.
    """
    if not data:
        raise InvalidImage("the image is empty: no bytes were sent")
    for start, name, reduce in _READERS:
        if data.startswith(start) and (name != "WEBP" or data[8:12] == b"WEBP"):
            try:
                return name, reduce(data, limits)
            except (struct.error, IndexError) as exc:
                raise InvalidImage("the image file is truncated within its header") from exc
    if (kind := _isobmff(data)) in ("AVIF", "HEIF"):
        if kind == "HEIF" and not heif_is_read():
            raise InvalidImage(
                "this is HEIC, the photo format of iPhones, whatever the file's name; this service "
                "runs without the extra that reads it: export the photo as JPEG"
            )
        return kind, data
    raise _foreign(data)


@cache
def heif_is_read() -> bool:
    """Register the reader of HEIC files if the extra is installed."""
    if importlib.util.find_spec("pi_heif") is None:
        return False
    importlib.import_module("pi_heif").register_heif_opener(thumbnails=False)
    return True


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
        if first_scan is None and (
            marker in _OTHER_JPEG or (marker in _SOF and data[begin + 4] != 8)
        ):
            kind = _OTHER_JPEG.get(marker) or f"JPEG with {data[begin + 4]} bits a sample"
            raise InvalidImage(f"{kind} is not read: save it as usual JPEG, or as PNG or TIFF")
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
    # An unknown critical chunk (upper case) stays, for Pillow to reject.
    kept = [data[begin:end] for kind, begin, end in _png_chunks(data)
            if kind in _PNG_KEPT or kind[:1].isupper()]  # fmt: skip
    return b"".join((data[:8], *kept))


def _png_chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Kind, begin and end of each chunk, to the last one of the picture or of the file."""
    at = 8
    for _ in range(MAX_PARTS):
        kind = data[at + 4 : at + 8]
        end = at + 12 + int.from_bytes(data[at : at + 4], "big")
        yield kind, at, end
        if kind == b"IEND" or end >= len(data):
            return
        at = end
    raise _too_many("chunks")


def is_animated_png(data: bytes) -> bool:
    """Whether a PNG file has the chunk of animations, which stands before its pixels."""
    kinds = (kind for kind, _, _ in _png_chunks(data))
    return b"acTL" in itertools.takewhile(lambda kind: kind != b"IDAT", kinds)


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


def _as_sent(data: bytes, limits: Limits) -> bytes:
    return data


def _jpeg2000(data: bytes, limits: Limits) -> bytes:
    """Check what OpenJPEG would need, which holds 32 bits for each sample of a tile."""
    begin = _codestream(data)
    if data[begin : begin + 4] != _CODESTREAM:
        raise InvalidImage("the JPEG 2000 file ends before its pixels")
    at = begin + 8
    right, bottom, left, top = struct.unpack_from(">4I", data, at)
    components = struct.unpack_from(">H", data, at + 32)[0]
    depths = [(data[at + 34 + 3 * n] & 0x7F) + 1 for n in range(components)]
    if max(right - left, 1) * max(bottom - top, 1) * components > limits.max_image_pixels * 2:
        raise ImageTooLarge(
            "the JPEG 2000 file is too large: at most two samples for each of "
            f"{limits.max_image_pixels} pixels"
        )
    if components > 1 and max(depths) > 8:
        raise InvalidImage(
            f"JPEG 2000 with {components} channels of {max(depths)} bits is not read: save it "
            "with 8 bits, or as TIFF"
        )
    return data


def _codestream(data: bytes) -> int:
    """Where the picture of a JPEG 2000 file begins: its box `jp2c`, or the file itself."""
    if data.startswith(_CODESTREAM):
        return 0
    at = 0
    for _ in range(MAX_PARTS):
        size, kind = struct.unpack_from(">I4s", data, at)
        header = 8
        if size == 1:
            size, header = struct.unpack_from(">Q", data, at + 8)[0], 16
        if kind == b"jp2c":
            return at + header
        if size < header:  # the last box, or no valid one
            return len(data)
        at += size
        if at > len(data):
            return len(data)
    raise _too_many("boxes")


_Reader = Callable[[bytes, Limits], bytes]
_READERS: tuple[tuple[bytes, str, _Reader], ...] = (
    (b"\xff\xd8\xff", "JPEG", _jpeg),
    (b"\x89PNG\r\n\x1a\n", "PNG", _png),
    (b"RIFF", "WEBP", _as_sent),
    (b"II*\0", "TIFF", _as_sent),  # see `serve_app.images.tiff_directory`
    (b"MM\0*", "TIFF", _as_sent),
    (b"II+\0", "TIFF", _as_sent),
    (b"MM\0+", "TIFF", _as_sent),
    (b"BM", "BMP", _bmp),
    (b"GIF87a", "GIF", _gif),
    (b"GIF89a", "GIF", _gif),
    (_CODESTREAM, "JPEG2000", _jpeg2000),
    (b"\0\0\0\x0cjP  \r\n\x87\n", "JPEG2000", _jpeg2000),
)

_AVIF = {b"avif", b"avis"}
_HEIC = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs"}
_NAMED: tuple[tuple[bytes, str], ...] = (
    (b"\xff\x0a", "JPEG XL"),
    (b"\0\0\0\x0cJXL \r\n\x87\n", "JPEG XL"),
    (b"II\xbc", "JPEG XR"),
    (b"%PDF-", "PDF"),
    (b"%!PS", "PostScript"),
    (b"<svg", "SVG"),
    (b"<?xml", "XML, perhaps SVG"),
    (b"<html", "a web page"),
    (b"<!DOCTYPE", "a web page"),
    (b"8BPS", "a Photoshop document"),
    (b"SIMPLE  =", "FITS"),
    (b"\x89HDF\r\n\x1a\n", "HDF5"),
    (b"\x93NUMPY", "a NumPy array file"),
    (b"v/1\x01", "OpenEXR"),
    (b"#?RADIANCE", "Radiance HDR"),
    (b"qoif", "QOI"),
    (b"DDS ", "DDS"),
    (b"\0\0\x01\0", "ICO"),
    (b"PK\x03\x04", "a zip archive"),
    (b"\x1f\x8b", "a gzip archive"),
    (b"gimp xcf", "a GIMP document"),
    (b"ZISRAWFILE", "a Zeiss CZI file"),
    (b"\x1aE\xdf\xa3", "a Matroska or WebM video"),
    (b"FUJIFILMCCD-RAW", "raw camera data"),
    (b"IIU\0", "raw camera data"),
    (b"IIRO", "raw camera data"),
    (b"IIRS", "raw camera data"),
    (b"MMOR", "raw camera data"),
)
"""What is not read, but can be named."""


def _isobmff(data: bytes) -> str:
    """``AVIF``, ``HEIF`` or ``video`` by the brands of the ISO base media file; empty: none."""
    if data[4:8] != b"ftyp":
        return ""
    end = min(int.from_bytes(data[:4], "big"), 256)
    brands = {data[8:12], *(data[at : at + 4] for at in range(16, end, 4))}
    # AVIF first: its files may name HEIF's general brands too.
    if brands & _AVIF:
        return "AVIF"
    return "HEIF" if brands & {*_HEIC, b"mif1", b"msf1", b"heif"} else "video"


def _foreign(data: bytes) -> InvalidImage:
    """The refusal of a file that none of the readers knows, by name where it has one."""
    start = data[:64].lstrip(b"\xef\xbb\xbf \t\r\n")
    name = next((name for mark, name in _NAMED if start.startswith(mark)), "")
    if data[8:12] == b"crx ":
        name = "raw camera data"
    elif _isobmff(data) == "video":
        name = "a video or another ISO media file"
    elif data[128:132] == b"DICM":
        name = "DICOM"
    elif data.startswith(b"RIFF") and data[8:12] == b"AVI ":
        name = "an AVI video"
    elif re.match(rb"P[1-7]\s", start):
        name = "a Netpbm image"
    if not name:
        return InvalidImage(f"the bytes are not an image in a supported format: send {FORMATS}")
    return InvalidImage(f"this is {name}, which is not a supported format: send {FORMATS}")
