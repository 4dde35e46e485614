"""Reads TIFF files of one to many channels and of 8 to 64 bits: what Pillow reads as another
picture, in fewer bits, or not at all.

The directories are parsed here, with bounds for everything a crafted file could make large.
Compressed strips and tiles are decoded by libtiff, which Pillow brings: they are handed over as
rows of bytes, an image of 8 bits, so that libtiff bounds their memory and Pillow changes no
sample.  The library for such files, tifffile, decompresses without a bound, and needs 26 MB of
codecs for LZW.

Sources: TIFF 6.0, the BigTIFF design, Adobe Photoshop TIFF technical notes (2002; deflate) and
technical note 3 (floating-point predictor), GDAL's tag 42113 (nodata).
"""

from __future__ import annotations

import ctypes
import io
import itertools
import math
import re
import struct
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import _imaging
from PIL.TiffImagePlugin import TiffImageFile

from serve_app.core.errors import ImageTooLarge, InvalidImage, InvalidRequest
from serve_app.core.limits import Limits
from serve_app.images.scaling import fits

MAX_PAGES = 16_384
"""Directories of one file; a stack has hundreds."""

MAX_TAGS = 4_096
"""Tags of one directory; there are about 100 kinds."""

MAX_FILE_TAGS = 400_000
"""Tags of all directories, which may overlap: a megabyte could name a thousand times as many."""

MAX_PIECES = 262_144
"""Strips or tiles of one page: enough for 16 x 16 tiles over 64 million pixels."""

BYTES_PER_PIXEL = 8
"""Bytes of samples for each pixel that the limits allow: four channels of 16 bits."""

MAX_PIECE_BYTES = 2**28
"""Bytes of one compressed strip or tile when decompressed; they have some kilobytes as a rule."""

_BATCH_BYTES = 2**23
_KINDS = {
    1: "u1", 2: "u1", 3: "u2", 4: "u4", 5: "u4", 6: "i1", 7: "u1", 8: "i2", 9: "i4", 10: "i4",
    11: "f4", 12: "f8", 13: "u4", 16: "u8", 17: "i8", 18: "u8",
}  # fmt: skip
"""NumPy's names of TIFF's types."""

_RATIONALS = (5, 10)

_BYTE_CODECS = {1, 5, 8, 32773, 32946, 34925, 50000}
"""Compressions of bytes, whatever they mean: none, LZW, deflate, PackBits, LZMA, Zstandard."""

_PILLOW_CODECS = {1, 2, 3, 4, 5, 6, 7, 8, 32771, 32773, 32809, 32946, 34925, 50000}
_CODEC_NAMES = {
    6: "old-style JPEG", 7: "JPEG", 22610: "JPEG XR", 33003: "JPEG 2000", 33004: "JPEG 2000",
    33005: "JPEG 2000", 34661: "JBIG", 34676: "SGI LogLuv", 34677: "SGI LogLuv",
    34712: "JPEG 2000", 34887: "LERC", 34892: "lossy JPEG (DNG)", 34933: "PNG", 34934: "JPEG XR",
    50001: "WebP", 50002: "JPEG XL", 52546: "JPEG XL",
}  # fmt: skip
_KIND_NAMES = {1: "uint", 2: "int", 3: "float"}
_GRAY_OR_RGB = (0, 1, 2)
CMYK, RGB = 5, 2
_PLACES = {3: "palette", 4: "transparency mask", 6: "YCbCr", 8: "Lab", 9: "ICC Lab", 10: "ITU Lab"}
_RAW = {32803, 34892}
_SAVE = "save it as an 8-bit or 16-bit TIFF or as PNG"


def silence_libtiff() -> None:
    """Keep libtiff from writing about each damaged file to this process's standard error."""
    # The library that Pillow is linked with; without the symbol it has another way to report.
    with suppress(OSError, AttributeError):
        library = ctypes.CDLL(_imaging.__file__)
        library.TIFFSetErrorHandler.restype = ctypes.c_void_p
        library.TIFFSetErrorHandler(None)
        library.TIFFSetWarningHandler(None)


class _Entry(NamedTuple):
    """A tag as the directory lists it.

    Attributes:
        values: how many there are.
        offset: where they lie, unless they fit into the field itself.
        field: where that field lies, which has ``word`` bytes.
    """

    kind: int
    values: int
    offset: int
    field: int
    word: int

    @property
    def at(self) -> int:
        """Where the values lie in the file."""
        each = np.dtype(_KINDS.get(self.kind, "u1")).itemsize * (1 + (self.kind in _RATIONALS))
        return self.offset if self.values * each > self.word else self.field


@dataclass(frozen=True)
class Directory:
    """One page's tags.

    Attributes:
        order: ``<`` or ``>``, the byte order.
        big: the file is a BigTIFF.
        offset: where it lies in the file.
        shift: bytes from the pixels that it names to those of its own.
    """

    data: bytes = field(repr=False)
    order: str
    big: bool
    offset: int
    entries: dict[int, _Entry]
    shift: int = 0

    def numbers(self, tag: int, most: int = MAX_PIECES) -> list[Any]:
        """The tag's numbers; empty if it is missing.

        Raises:
            InvalidImage: there are more than ``most``, or they lie outside of the file.
        """
        entry = self.entries.get(tag)
        if entry is not None and entry.values > most:
            raise InvalidImage("the TIFF file has too many strips, tiles or values of a tag")
        return [] if entry is None else self._values(entry, entry.values)

    def _values(self, entry: _Entry, count: int) -> list[Any]:
        if entry.kind not in _KINDS:
            return []
        each = 2 if entry.kind in _RATIONALS else 1
        dtype = np.dtype(self.order + _KINDS[entry.kind])
        end = entry.at + count * each * dtype.itemsize
        if end > len(self.data):
            raise InvalidImage("the image file is truncated within its header")
        found = np.frombuffer(self.data, dtype, count * each, entry.at)
        if each == 2:
            pairs = found.reshape(-1, 2).astype(np.float64)
            with np.errstate(all="ignore"):
                return list((pairs[:, 0] / pairs[:, 1]).tolist())
        return list(found.tolist())

    def number(self, tag: int, default: int) -> int:
        """The tag's first number as an integer; the others are not read."""
        entry = self.entries.get(tag)
        found = [] if entry is None else self._values(entry, min(entry.values, 1))
        if not found:
            return default
        if not math.isfinite(found[0]):
            raise InvalidImage("a tag of the TIFF file holds no valid number")
        return int(found[0])

    def text(self, tag: int, most: int = 65_536) -> str:
        """The tag's text, cut to ``most`` bytes."""
        entry = self.entries.get(tag)
        if entry is None or entry.kind not in (1, 2, 7):
            return ""
        raw = self.data[entry.at : entry.at + min(entry.values, most)]
        return raw.split(b"\0", 1)[0].decode("utf-8", "replace")

    # What the picture is.

    @property
    def width(self) -> int:
        return self.number(256, 0)

    @property
    def height(self) -> int:
        return self.number(257, 0)

    @property
    def channels(self) -> int:
        return self.number(277, 1)

    @cached_property
    def bits(self) -> tuple[int, ...]:
        """Bits of a sample of each channel; of one where all have the same."""
        found = {int(n) for n in self.numbers(258, 65_536)} or {1}
        return tuple(sorted(found))

    @property
    def codec(self) -> int:
        return self.number(259, 1)

    @property
    def photometric(self) -> int:
        return self.number(262, 1)

    @property
    def planar(self) -> bool:
        return self.number(284, 1) == 2

    @property
    def orientation(self) -> int:
        return self.number(274, 1)

    @property
    def sample_format(self) -> int:
        formats = set(self.numbers(339, 65_536)) or {1}
        # 4 is "undefined", which readers take for unsigned.
        return 0 if len(formats) > 1 else {4: 1}.get(min(formats), min(formats))

    @property
    def extra(self) -> list[int]:
        """Of each channel beyond the colours: 1 premultiplied alpha, 2 alpha, 0 anything."""
        return self.numbers(338, 65_536)

    @property
    def reduced(self) -> bool:
        """Whether it is a smaller copy of another page, or a mask of one."""
        return bool(self.number(254, 0) & 5) or self.number(255, 1) == 2

    @property
    def dtype_name(self) -> str:
        bits = self.bits[-1]
        return "bool" if bits == 1 else f"{_KIND_NAMES.get(self.sample_format, 'complex')}{bits}"

    @property
    def codec_name(self) -> str:
        return _CODEC_NAMES.get(self.codec, f"compression {self.codec}")

    @property
    def title(self) -> str:
        """The kind of file, for messages."""
        channels = "1 channel" if self.channels == 1 else f"{self.channels} channels"
        return f"{self.dtype_name} TIFF with {channels}"

    @property
    def nodata(self) -> float | None:
        """GDAL's tag for the value of pixels without data."""
        try:
            value = float(self.text(42113, 64).strip())
        except ValueError:
            return None
        return value if math.isfinite(value) else None

    def pixel_size(self) -> tuple[float, float, str] | None:
        """Width and height of a pixel, and their unit, where the file says so."""
        description = self.text(270)
        if "PhysicalSizeX=" in description:  # OME
            sizes = [_attribute(description, f"PhysicalSize{axis}") for axis in "XY"]
            unit = re.search(r'PhysicalSizeXUnit="([^"]{1,8})"', description)
            return _positive(sizes[0], sizes[1], _unit(unit[1] if unit else "um"))
        x, y = (next(iter(self.numbers(tag, 16)), math.nan) for tag in (282, 283))
        x, y = (1 / n if n and math.isfinite(n) else math.nan for n in (x, y))
        if description.startswith("ImageJ="):
            unit = re.search(r"^unit=(\S{1,16})", description, re.MULTILINE)
            return _positive(x, y, _unit(unit[1])) if unit else None
        scale = {2: 25_400.0, 3: 10_000.0}.get(self.number(296, 2))
        return None if scale is None else _positive(x * scale, y * scale, "um")


def _attribute(text: str, name: str) -> float:
    match = re.search(rf'{name}="([0-9.eE+-]{{1,32}})"', text)
    try:
        return float(match[1]) if match else math.nan
    except ValueError:
        return math.nan


def _unit(text: str) -> str:
    text = text.replace("\\u00B5", "u").replace("\u00b5", "u").replace("\u03bc", "u")
    return {"micron": "um", "microns": "um", "inch": "in"}.get(text, text)


def _positive(x: float, y: float, unit: str) -> tuple[float, float, str] | None:
    good = all(math.isfinite(n) and n > 0 for n in (x, y))
    # Six digits: more are of the division, not of the file.
    return (float(f"{x:.6g}"), float(f"{y:.6g}"), unit) if good else None


def pages_of(data: bytes) -> list[Directory]:
    """The file's pages, without thumbnails, overviews and masks.

    Raises:
        InvalidImage: the first directory is damaged, or there are too many.
    """
    order = "<" if data.startswith(b"II") else ">"
    big = struct.unpack_from(order + "H", data, 2)[0] == 43
    at = struct.unpack_from(order + ("Q" if big else "I"), data, 8 if big else 4)[0]
    found: list[Directory] = []
    seen: set[int] = set()
    tags = 0
    # A chain that leads back, or out of the file, ends there.
    while at and at not in seen and (not found or at + 2 < len(data)):
        if len(found) >= MAX_PAGES:
            raise InvalidImage(f"the TIFF file has more than {MAX_PAGES} pages: send fewer")
        seen.add(at)
        try:
            directory, at, count = _directory(data, order, big, at)
        except InvalidImage:
            if not found:
                raise
            break
        tags += count
        if tags > MAX_FILE_TAGS:
            raise InvalidImage("the TIFF file's pages have too many tags: send fewer pages")
        found.append(directory)
    whole = [page for page in found if not page.reduced]
    if not whole and found:
        # Cameras keep a thumbnail here and the picture in a directory below it.
        inner = []
        for offset in found[0].numbers(330, 64):
            with suppress(InvalidImage, struct.error):
                inner.append(_directory(data, order, big, int(offset))[0])
        whole = [page for page in inner if not page.reduced]
    whole = whole or found
    return _stack(whole[0]) if len(found) == len(whole) == 1 else whole


def _stack(page: Directory) -> list[Directory]:
    """The planes of an ImageJ file that describes the first alone; they follow one another."""
    match = re.match(r"ImageJ=[^\n]*\nimages=(\d{1,5})\n", page.text(270, 256))
    offsets, sizes = (page.numbers(tag) for tag in (273, 279))
    if match is None or not offsets or len(offsets) != len(sizes) or page.codec != 1:
        return [page]
    plane = sum(sizes)
    ends = list(itertools.accumulate(sizes, initial=offsets[0]))
    count = min(int(match[1]), MAX_PAGES)
    if count < 2 or ends[:-1] != offsets or offsets[0] + count * plane > len(page.data):
        return [page]
    return [replace(page, shift=n * plane) for n in range(count)]


def _directory(data: bytes, order: str, big: bool, at: int) -> tuple[Directory, int, int]:
    """The directory at an offset, the offset of the next, and how many tags it lists."""
    count_format, word = ("Q", 8) if big else ("H", 4)
    try:
        count = struct.unpack_from(order + count_format, data, at)[0]
    except struct.error:
        raise InvalidImage("the image file is truncated within its header") from None
    if count > MAX_TAGS:
        raise InvalidImage("the image file has too many tags: re-save the file and retry")
    begin = at + struct.calcsize("=" + count_format)
    each = 12 + 8 * big
    end = begin + count * each
    if end + word > len(data):
        raise InvalidImage("the image file is truncated within its header")
    entries: dict[int, _Entry] = {}
    listed = struct.iter_unpack(order + ("HHQQ" if big else "HHII"), data[begin:end])
    for index, (tag, kind, n, value) in enumerate(listed, 1):
        entries.setdefault(tag, _Entry(kind, n, value, begin + index * each - word, word))
    following = struct.unpack_from(order + ("Q" if big else "I"), data, end)[0]
    return Directory(data, order, big, at, entries), following, count


def chosen(found: list[Directory], page: int) -> Directory:
    """The page of a number.

    Raises:
        InvalidRequest: there is no such page.
    """
    if not found:
        raise InvalidImage("the TIFF file has no pages")
    if page >= len(found):
        raise InvalidRequest(
            f"there is no page {page}: the file's pages, from 0, are {len(found)} in number", "page"
        )
    return found[page]


def check(page: Directory, limits: Limits) -> None:
    """Refuse, by name, what neither this module nor Pillow reads right.

    Raises:
        InvalidImage: the file is of a kind that is not read.
        ImageTooLarge: tiles or samples are larger than the limits allow.
    """
    if page.channels < 1 or page.channels > 65_535:
        raise InvalidImage("the TIFF file's number of channels is not valid")
    tile = (page.number(322, 1), page.number(323, 1))
    if min(tile) < 1:
        raise InvalidImage("the TIFF file's tile size is not a valid integer")
    # libtiff decodes whole tiles, however small the image in them.
    if max(tile) > limits.max_image_side or tile[0] * tile[1] > limits.max_image_pixels:
        raise ImageTooLarge("the TIFF file's tiles are larger than the limit for images")
    for tag in (273, 279, 324, 325):
        if tag in page.entries and page.entries[tag].values > MAX_PIECES:
            raise InvalidImage(
                "the image file has too many strips or tiles: re-save the file and retry"
            )
    if page.photometric in _RAW:
        raise InvalidImage(
            "this is raw camera data (such as DNG), not a picture: develop it and send JPEG or TIFF"
        )
    if page.codec not in _PILLOW_CODECS:
        raise InvalidImage(
            f"{page.codec_name} inside TIFF is not read (this is a {page.title}): save it "
            "without compression, or with LZW or deflate"
        )
    if ours(page):
        return
    if len(page.bits) > 1 or page.sample_format not in (1, 2, 3):
        raise InvalidImage(f"the samples of this {page.title} differ or are complex: {_SAVE}")
    if page.bits[0] not in (1, 2, 4, 8) or page.sample_format != 1:
        raise InvalidImage(_unread(page))
    several = page.channels > 1
    if several and (page.planar or (page.photometric in (0, 1) and page.bits[0] < 8)):
        raise InvalidImage(_unread(page))


def _unread(page: Directory) -> str:
    kind = _PLACES.get(page.photometric, "")
    with_codec = "" if page.codec in _BYTE_CODECS else f", {page.codec_name} compression"
    return f"a {kind}{kind and ' '}{page.title}{with_codec} is not read: {_SAVE}"


def ours(page: Directory) -> bool:
    """Whether `samples` reads the page; the others are for Pillow."""
    bits, kind = page.bits, page.sample_format
    if len(bits) > 1 or page.codec not in _BYTE_CODECS or page.number(266, 1) != 1:
        return False
    if page.photometric == CMYK:
        return page.channels == 4 and kind == 1 and bits[0] in (8, 16)
    depths: tuple[int, ...] = {1: (8, 16, 32, 64), 2: (8, 16, 32, 64), 3: (16, 32, 64)}.get(
        kind, ()
    )
    return page.photometric in _GRAY_OR_RGB and bits[0] in depths


def samples(page: Directory, wanted: list[int], limits: Limits) -> NDArray[Any]:
    """The ``(H, W, len(wanted))`` samples of the wanted channels, in this machine's byte order.

    Raises:
        InvalidImage: the file is truncated or damaged.
        ImageTooLarge: there are more bytes of samples than the limits allow.
    """
    width, height, channels = page.width, page.height, page.channels
    kind = {1: "u", 2: "i", 3: "f"}[page.sample_format]
    dtype = np.dtype(f"{kind}{page.bits[0] // 8}")
    tiled = 322 in page.entries
    across = page.number(322, width) if tiled else width
    down = page.number(323, height) if tiled else page.number(278, height)
    down = down if tiled else min(max(down, 1), height)
    columns, rows = -(-width // across), -(-height // down)
    planes = channels if page.planar and channels > 1 else 1
    each = channels // planes
    # Whole tiles are decoded, however small the image in them.
    most = max(width * height * max(channels, len(wanted)), across * down * each)
    if most * dtype.itemsize > limits.max_image_pixels * BYTES_PER_PIXEL:
        raise ImageTooLarge(
            f"the samples of this {page.title}, {width} x {height} pixels, are too large: at most "
            f"{BYTES_PER_PIXEL} bytes for each of {limits.max_image_pixels} pixels"
        )
    offsets = [n and n + page.shift for n in page.numbers(324 if tiled else 273)]
    sizes = page.numbers(325 if tiled else 279)
    total = columns * rows * planes
    if page.codec == 1:
        # Some writers leave the sizes out, which follow from the picture's.
        usual = across * down * each * dtype.itemsize
        sizes = [size or usual for size in sizes or [0] * len(offsets)]
    if min(len(offsets), len(sizes)) < total:
        raise InvalidImage("the TIFF file has fewer strips or tiles than its size needs")
    if page.codec != 1 and across * down * each * dtype.itemsize > MAX_PIECE_BYTES:
        raise ImageTooLarge(
            f"a strip or tile of this {page.title} has more than {MAX_PIECE_BYTES} bytes: save it "
            "in smaller ones, or without compression"
        )
    # Shared bytes are usual for empty tiles only; each is read again.
    if sum(min(size, len(page.data)) for size in sizes[:total]) > 4 * len(page.data) + 2**20:
        raise InvalidImage("the TIFF file's strips or tiles overlap")
    empty = 0 if page.nodata is None or not fits(page.nodata, dtype) else page.nodata
    result = np.full((height, width, len(wanted)), empty, dtype)
    # Of each plane: which of its samples becomes which channel of the result.
    places: dict[int, list[tuple[int, int]]] = {}
    for index, channel in enumerate(wanted):
        plane, inside = (channel, 0) if planes > 1 else (0, channel)
        places.setdefault(plane, []).append((index, inside))
    grid = _Grid(page, dtype, across, down, each)
    for plane, where in places.items():
        first = plane * columns * rows
        pieces = range(first, first + columns * rows)
        for number, offset, block in grid.decoded(offsets, sizes, pieces):
            row, column = divmod(number - first, columns)
            top, left = row * down + offset, column * across
            cut = result[top : top + len(block), left : left + across]
            part = block[: cut.shape[0], : cut.shape[1]]
            for index, channel in where:
                cut[:, :, index] = part[:, :, channel]
    return result


@dataclass(frozen=True, slots=True)
class _Grid:
    """The strips or tiles of a plane: ``across`` x ``down`` pixels with ``each`` samples."""

    page: Directory
    dtype: np.dtype[Any]
    across: int
    down: int
    each: int

    @property
    def row_bytes(self) -> int:
        return self.across * self.each * self.dtype.itemsize

    def decoded(
        self, offsets: list[int], sizes: list[int], numbers: range
    ) -> Iterator[tuple[int, int, NDArray[Any]]]:
        """Blocks of rows: the piece's number, the first row, and samples (rows, across, each)."""
        last_rows = (self.page.height - 1) % self.down + 1
        if 322 in self.page.entries:
            last_rows = self.down
        batch = max(1, _BATCH_BYTES // (self.row_bytes * self.down))
        step = max(1, _BATCH_BYTES // self.row_bytes)
        for start in range(numbers.start, numbers.stop, batch):
            group = range(start, min(start + batch, numbers.stop))
            # A sparse file has no bytes where all samples are zero.
            held = [n for n in group if offsets[n]]
            if not held:
                continue
            rows = [last_rows if n == numbers.stop - 1 else self.down for n in held]
            pieces = [self.page.data[offsets[n] : offsets[n] + sizes[n]] for n in held]
            take = self._rows(pieces, rows)
            end = 0
            for number, count in zip(held, rows, strict=True):
                begin, end = end, end + count
                for first in range(0, count, step):
                    raw = take(begin + first, min(begin + first + step, end))
                    yield number, first, self._typed(raw)

    def _rows(
        self, pieces: list[bytes], rows: list[int]
    ) -> Callable[[int, int], NDArray[np.uint8]]:
        """A function that returns some of the pieces' rows of bytes, decompressed."""
        if self.page.codec == 1:
            wanted = [count * self.row_bytes for count in rows]
            if any(len(piece) < n for piece, n in zip(pieces, wanted, strict=True)):
                raise InvalidImage("the TIFF file ends before its pixels")
            joined = b"".join(piece[:n] for piece, n in zip(pieces, wanted, strict=True))
            whole = np.frombuffer(joined, np.uint8).reshape(-1, self.row_bytes)
            return lambda begin, end: whole[begin:end]
        image = TiffImageFile(io.BytesIO(self._as_bytes(pieces, sum(rows))))
        image.load()

        def some(begin: int, end: int) -> NDArray[np.uint8]:
            part = image.crop((0, begin, image.width, end))
            return np.asarray(part).reshape(end - begin, self.row_bytes)

        return some

    def _as_bytes(self, pieces: list[bytes], height: int) -> bytes:
        """A TIFF file of 8-bit pixels with the pieces as its strips."""
        n = len(pieces)
        # Four bytes a pixel where that divides a row: Pillow bounds the pixels of a strip.
        lanes = 1 if self.row_bytes % 4 else 4
        tags = {
            256: [self.row_bytes // lanes],
            257: [height],
            258: [8] * lanes,
            259: [self.page.codec],
            262: [1 if lanes == 1 else CMYK],
            273: [0] * n,
            277: [lanes],
            278: [self.down],
            279: [len(piece) for piece in pieces],
        }
        start = 8 + 2 + 12 * len(tags) + 4
        at = start + sum(4 * len(values) for values in tags.values() if len(values) > 1)
        for index, piece in enumerate(pieces):
            tags[273][index] = at
            at += len(piece)
        entries, lists = b"", b""
        for tag, values in tags.items():
            packed = struct.pack(f"<{len(values)}I", *values)
            if len(values) > 1:
                packed, lists = struct.pack("<I", start + len(lists)), lists + packed
            entries += struct.pack("<HHI", tag, 4, len(values)) + packed
        head = b"II*\0\x08\0\0\0" + struct.pack("<H", len(tags)) + entries + bytes(4)
        return b"".join((head, lists, *pieces))

    def _typed(self, raw: NDArray[np.uint8]) -> NDArray[Any]:
        """Rows of bytes as samples, with the predictor undone."""
        predictor, size = self.page.number(317, 1), self.dtype.itemsize
        shape = (len(raw), self.across, self.each)
        if predictor == 3 and self.dtype.kind == "f":
            # Bytes of equal weight lie together, the highest first, as differences.
            steps = raw.reshape(len(raw), -1, self.each)
            whole = np.cumsum(steps, axis=1, dtype=np.uint8).reshape(len(raw), size, -1)
            swapped = np.ascontiguousarray(whole.transpose(0, 2, 1))
            return swapped.view(self.dtype.newbyteorder(">")).reshape(shape).astype(self.dtype)
        if predictor not in (1, 2):
            raise InvalidImage("the TIFF file's predictor is not known")
        # A copy for alignment too.
        order = self.page.order
        values = np.frombuffer(raw.tobytes(), np.dtype(f"{order}u{size}"))
        values = values.astype(f"u{size}").reshape(shape)
        if predictor == 2:
            values = np.cumsum(values, axis=1, dtype=values.dtype)
        return values.view(self.dtype)
