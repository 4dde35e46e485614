"""The directories of TIFF files: what each page is, and where its strips or tiles lie.

Everything that a crafted file could make large has a bound here.

Sources: TIFF 6.0, the BigTIFF design, GDAL's tag 42113 (nodata).
"""

from __future__ import annotations

import itertools
import math
import re
import struct
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from serve_app.core.errors import InvalidImage, InvalidRequest

MAX_PAGES = 16_384
"""Directories of one file; a stack has hundreds."""

MAX_TAGS = 4_096
"""Tags of one directory; there are about 100 kinds."""

MAX_FILE_TAGS = 400_000
"""Tags of all directories, which may overlap: a megabyte could name a thousand times as many."""

MAX_PIECES = 262_144
"""Strips or tiles of one page: enough for 16 x 16 tiles over 64 million pixels."""

_KINDS = {
    1: "u1", 2: "u1", 3: "u2", 4: "u4", 5: "u4", 6: "i1", 7: "u1", 8: "i2", 9: "i4", 10: "i4",
    11: "f4", 12: "f8", 13: "u4", 16: "u8", 17: "i8", 18: "u8",
}  # fmt: skip
"""NumPy's names of TIFF's types."""

_RATIONALS = (5, 10)

BYTE_CODECS = {1, 5, 8, 32773, 32946, 34925, 50000}
"""Compressions of bytes, whatever they mean: none, LZW, deflate, PackBits, LZMA, Zstandard."""

_CODEC_NAMES = {
    6: "old-style JPEG", 7: "JPEG", 22610: "JPEG XR", 33003: "JPEG 2000", 33004: "JPEG 2000",
    33005: "JPEG 2000", 34661: "JBIG", 34676: "SGI LogLuv", 34677: "SGI LogLuv",
    34712: "JPEG 2000", 34887: "LERC", 34892: "lossy JPEG (DNG)", 34933: "PNG", 34934: "JPEG XR",
    50001: "WebP", 50002: "JPEG XL", 52546: "JPEG XL",
}  # fmt: skip
_KIND_NAMES = {1: "uint", 2: "int", 3: "float"}
WHITE_IS_ZERO, RGB, PALETTE, MASK, CMYK = 0, 2, 3, 4, 5
"""Values of `Directory.photometric`; 1 is gray."""

_DEPTHS = {1: (8, 16, 32, 64), 2: (8, 16, 32, 64), 3: (16, 32, 64)}
"""Bits of the samples that are read in each format: unsigned, signed, floating-point."""


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

    def places(self, tag: int) -> list[int]:
        """The tag's numbers, which are offsets or sizes; empty if it is missing.

        Raises:
            InvalidImage: as `numbers`, or one of them is negative or no integer.
        """
        found = self.numbers(tag)
        if any(not isinstance(n, int) or n < 0 for n in found):
            raise InvalidImage("an offset or a size in the TIFF file is not a valid integer")
        return found

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
    def tiled(self) -> bool:
        return 322 in self.entries

    @property
    def piece_size(self) -> tuple[int, int]:
        """Width and height of a tile or strip in pixels; the last strip may be lower."""
        if self.tiled:
            return self.number(322, self.width), self.number(323, self.height)
        return self.width, min(max(self.number(278, self.height), 1), self.height)

    @property
    def pieces_of_a_plane(self) -> tuple[int, int]:
        """How many tiles or strips lie beside and below each other."""
        across, down = self.piece_size
        return -(-self.width // across), -(-self.height // down)

    @property
    def planes(self) -> int:
        """How many times the strips or tiles cover the picture: once, or once for each channel."""
        return self.channels if self.planar else 1

    @property
    def colours(self) -> int:
        """Channels of colour as they are stored; alpha and others follow them."""
        return {CMYK: 4}.get(self.photometric, 1 if self.is_gray or self.is_palette else 3)

    @property
    def is_gray(self) -> bool:
        return self.photometric in (WHITE_IS_ZERO, 1, MASK)

    @property
    def is_palette(self) -> bool:
        return self.photometric == PALETTE

    @property
    def bytewise(self) -> bool:
        """Whether `serve_app.images.tiff_samples` reads it; other pages are for Pillow.

        Its samples are whole bytes of one kind, compressed as bytes.
        """
        if len(self.bits) > 1 or self.codec not in BYTE_CODECS or self.photometric == MASK:
            return False
        bits, kind = self.bits[0], self.sample_format
        if self.is_palette:
            return (self.channels, kind, bits) == (1, 1, 8)
        if self.photometric == CMYK:
            return kind == 1 and bits in (8, 16)
        return (self.is_gray or self.photometric == RGB) and bits in _DEPTHS.get(kind, ())

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
        with suppress(InvalidImage):
            for offset in found[0].places(330)[:64]:
                with suppress(InvalidImage):
                    inner.append(_directory(data, order, big, offset)[0])
        whole = [page for page in inner if not page.reduced]
    whole = whole or found
    return _stack(whole[0]) if len(found) == len(whole) == 1 else whole


def _stack(page: Directory) -> list[Directory]:
    """The planes of an ImageJ file that describes the first alone; they follow one another."""
    match = re.match(r"ImageJ=[^\n]*\nimages=(\d{1,5})\n", page.text(270, 256))
    # Pillow, which would read other pages, knows nothing of their planes.
    if match is None or page.codec != 1 or not page.bytewise:
        return [page]
    offsets, sizes = (page.places(tag) for tag in (273, 279))
    if not offsets or len(offsets) != len(sizes):
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
    begin = at + struct.calcsize("=" + count_format)
    if begin > len(data):
        raise InvalidImage("the image file is truncated within its header")
    count = struct.unpack_from(order + count_format, data, at)[0]
    if count > MAX_TAGS:
        raise InvalidImage("the image file has too many tags: re-save the file and retry")
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
