"""Samples of TIFF pages: of one to many channels and of 8 to 64 bits, which Pillow reads as
another picture, in fewer bits, or not at all.

Compressed strips and tiles are decoded by libtiff, which Pillow brings: they are handed over as
rows of bytes, an image of 8 bits, so that libtiff bounds their memory and Pillow changes no
sample.  The library for such files, tifffile, decompresses without a bound, and needs 26 MB of
codecs for LZW.

Sources: TIFF 6.0, Adobe Photoshop TIFF technical notes (2002; deflate) and technical note 3
(floating-point predictor).
"""

from __future__ import annotations

import ctypes
import io
import struct
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, _imaging
from PIL.TiffImagePlugin import TiffImageFile

from serve_app.core.errors import ImageTooLarge, InvalidImage
from serve_app.core.limits import Limits
from serve_app.images.scaling import fits
from serve_app.images.tiff_directory import BYTE_CODECS, MAX_PIECES, Directory

BYTES_PER_PIXEL = 8
"""Bytes of samples for each pixel that the limits allow: four channels of 16 bits."""

MAX_PIECE_BYTES = 2**28
"""Bytes of one compressed strip or tile when decompressed; they have some kilobytes as a rule."""

MAX_PADDING = 4
"""Tiles cover the picture and extend beyond it, to up to four times its samples."""

FREE_PADDING_BYTES = 2**26
"""Pictures smaller than a tile may have more padding, up to this number of bytes."""

SMALL_TILE, MAX_SMALL_TILES = 256, 16_384
"""TIFF's tiles have 16 x 16 pixels at least; of smaller ones a page may have this number: each
costs as much as some thousand samples."""

_BATCH_BYTES = 2**23
_PILLOW_CODECS = {1, 2, 3, 4, 5, 6, 7, 8, 32771, 32773, 32809, 32946, 34925, 50000}
_PREDICTED_CODECS = {5, 8, 32946, 34925, 50000}
"""LZW, deflate, LZMA and Zstandard: data of the others have no predictor, whatever the tag says."""

_REVERSED = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))
_NAMES = {3: "palette", 4: "transparency mask", 5: "CMYK", 6: "YCbCr", 8: "Lab", 9: "ICC Lab",
          10: "ITU Lab"}  # fmt: skip
_RAW = {32803, 34892}
_SAVE = "save it as gray or RGB with integers of 8 or 16 bits, uncompressed or with LZW or deflate"
"""`Directory.bytewise` is true of all such files."""


def silence_libtiff() -> None:
    """Keep libtiff from writing about each damaged file to this process's standard error."""
    # The library that Pillow is linked with; without the symbol it has another way to report.
    with suppress(OSError, AttributeError):
        library = ctypes.CDLL(_imaging.__file__)
        library.TIFFSetErrorHandler.restype = ctypes.c_void_p
        library.TIFFSetErrorHandler(None)
        library.TIFFSetWarningHandler(None)


def check(page: Directory, limits: Limits) -> None:
    """Refuse, by name, what neither this module nor Pillow reads right, or only with much work.

    Raises:
        InvalidImage: the file is of a kind that is not read.
        ImageTooLarge: tiles or samples are larger than the limits allow.
    """
    if page.channels < 1 or page.channels > 65_535:
        raise InvalidImage("the TIFF file's number of channels is not valid")
    _check_pieces(page, limits)
    if page.photometric in _RAW:
        raise InvalidImage(
            "this is raw camera data (such as DNG), not a picture: develop it and send JPEG or TIFF"
        )
    if page.codec not in _PILLOW_CODECS:
        raise InvalidImage(
            f"{page.codec_name} inside TIFF is not read (this is a {page.title}): save it "
            "without compression, or with LZW or deflate"
        )
    if page.bytewise:
        if page.channels < page.colours:
            kind = _NAMES.get(page.photometric, "RGB")
            raise InvalidImage(
                f"this {kind} TIFF has {page.channels} channels, fewer than {page.colours}"
            )
        return
    if len(page.bits) > 1 or page.sample_format not in (1, 2, 3):
        raise InvalidImage(f"the samples of this {page.title} differ or are complex: {_SAVE}")
    if page.bits[0] not in (1, 2, 4, 8) or page.sample_format != 1:
        raise InvalidImage(_unread(page))
    several = page.channels > 1
    if several and (page.planar or (page.photometric in (0, 1) and page.bits[0] < 8)):
        raise InvalidImage(_unread(page))
    if page.big and page.order == ">":
        raise InvalidImage(_unread(page, "big-endian BigTIFF: "))


def _unread(page: Directory, why: str = "") -> str:
    kind = _NAMES.get(page.photometric, "")
    with_codec = "" if page.codec in BYTE_CODECS else f", {page.codec_name} compression"
    return f"{why}a {kind}{kind and ' '}{page.title}{with_codec} is not read: {_SAVE}"


def _check_pieces(page: Directory, limits: Limits) -> None:
    """Bound the work that strips and tiles cause, whatever the picture that they are of."""
    across, down = page.piece_size
    if min(across, down) < 1:
        raise InvalidImage("the TIFF file's tile size is not a valid integer")
    # libtiff decodes whole tiles, however small the image in them.
    if max(across, down) > limits.max_image_side or across * down > limits.max_image_pixels:
        raise ImageTooLarge("the TIFF file's tiles are larger than the limit for images")
    columns, rows = page.pieces_of_a_plane
    small = page.tiled and across * down < SMALL_TILE
    counts = [page.entries[tag].values for tag in (273, 279, 324, 325) if tag in page.entries]
    if max(counts, default=0) > MAX_PIECES or (small and columns * rows > MAX_SMALL_TILES):
        raise InvalidImage(
            "the image file has too many strips or tiles: re-save the file and retry"
        )
    planes = min(page.planes, 4)  # no more are read
    each = page.channels // page.planes * planes * -(-page.bits[-1] // 8)
    own, whole = page.width * page.height * each, columns * across * rows * down * each
    most = min(
        MAX_PADDING * own + FREE_PADDING_BYTES, 2 * limits.max_image_pixels * BYTES_PER_PIXEL
    )
    if page.tiled and whole > most:
        raise ImageTooLarge(
            f"the tiles of this {page.title} have {whole} bytes, many times those of its "
            f"{page.width} x {page.height} pixels: save it in strips or smaller tiles"
        )
    for tag in (273, 324):
        page.places(tag)
    for tag in (279, 325):
        # Shared bytes are usual for empty tiles only; each is read again.
        if sum(min(n, len(page.data)) for n in page.places(tag)) > 4 * len(page.data) + 2**20:
            raise InvalidImage("the TIFF file's strips or tiles overlap")


def samples(page: Directory, wanted: list[int], limits: Limits) -> NDArray[Any]:
    """The samples of the wanted channels of a `Directory.bytewise` page that passed `check`.

    Args:
        wanted: channels as they are stored, from 0.

    Returns:
        ``(H, W, len(wanted))`` in this machine's byte order: uint8 to uint64, int8 to int64, or
        float16 to float64.  The caller may write to it.

    Raises:
        InvalidImage: the file is truncated or damaged.
        ImageTooLarge: there are more bytes of samples than the limits allow.
    """
    width, height, channels = page.width, page.height, page.channels
    kind = {1: "u", 2: "i", 3: "f"}[page.sample_format]
    dtype = np.dtype(f"{kind}{page.bits[0] // 8}")
    across, down = page.piece_size
    columns, rows = page.pieces_of_a_plane
    each = channels // page.planes
    # Whole tiles are decoded, however small the image in them.
    most = max(width * height * max(channels, len(wanted)), across * down * each)
    if most * dtype.itemsize > limits.max_image_pixels * BYTES_PER_PIXEL:
        raise ImageTooLarge(
            f"the samples of this {page.title}, {width} x {height} pixels, are too large: at most "
            f"{BYTES_PER_PIXEL} bytes for each of {limits.max_image_pixels} pixels"
        )
    offsets = [n and n + page.shift for n in page.places(324 if page.tiled else 273)]
    sizes = page.places(325 if page.tiled else 279)
    total = columns * rows * page.planes
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
    empty = 0 if page.nodata is None or not fits(page.nodata, dtype) else page.nodata
    result = np.full((height, width, len(wanted)), empty, dtype)
    # Of each plane: which of its samples becomes which channel of the result.
    places: dict[int, list[tuple[int, int]]] = {}
    for index, channel in enumerate(wanted):
        plane, inside = (channel, 0) if page.planes > 1 else (0, channel)
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
        last_rows = self.down if self.page.tiled else (self.page.height - 1) % self.down + 1
        batch = max(1, _BATCH_BYTES // (self.row_bytes * self.down))
        step = max(1, _BATCH_BYTES // self.row_bytes)
        data = memoryview(self.page.data)
        for start in range(numbers.start, numbers.stop, batch):
            group = range(start, min(start + batch, numbers.stop))
            # A sparse file has no bytes where all samples are zero.
            held = [n for n in group if offsets[n]]
            if not held:
                continue
            rows = [last_rows if n == numbers.stop - 1 else self.down for n in held]
            pieces: list[bytes | memoryview]
            pieces = [data[offsets[n] : offsets[n] + sizes[n]] for n in held]
            if self.page.number(266, 1) == 2:  # bits from low to high
                pieces = [bytes(piece).translate(_REVERSED) for piece in pieces]
            take = self._rows(pieces, rows)
            end = 0
            for number, count in zip(held, rows, strict=True):
                begin, end = end, end + count
                for first in range(0, count, step):
                    raw = take(begin + first, min(begin + first + step, end))
                    yield number, first, self._typed(raw)

    def _rows(
        self, pieces: list[bytes | memoryview], rows: list[int]
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
        # Else Pillow would bound the pixels, which are bytes here: `MAX_PIECE_BYTES` does.
        image.im = Image.new(image.mode, image.size, None).im
        image.load()

        def some(begin: int, end: int) -> NDArray[np.uint8]:
            whole = (begin, end) == (0, image.height)
            return np.asarray(image if whole else image.crop((0, begin, image.width, end)))

        return some

    def _as_bytes(self, pieces: list[bytes | memoryview], height: int) -> bytes:
        """A TIFF file of 8-bit gray pixels with the pieces as its strips."""
        n = len(pieces)
        tags = {
            256: [self.row_bytes],
            257: [height],
            258: [8],
            259: [self.page.codec],
            262: [1],
            273: [0] * n,
            277: [1],
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
        predictor = self.page.number(317, 1) if self.page.codec in _PREDICTED_CODECS else 1
        size = self.dtype.itemsize
        shape = (len(raw), self.across, self.each)
        if predictor == 3 and self.dtype.kind == "f":
            # Bytes of equal weight lie together, the highest first, as differences.
            steps = raw.reshape(len(raw), -1, self.each)
            whole = np.cumsum(steps, axis=1, dtype=np.uint8).reshape(len(raw), size, -1)
            swapped = np.ascontiguousarray(whole.transpose(0, 2, 1))
            return swapped.view(self.dtype.newbyteorder(">")).reshape(shape).astype(self.dtype)
        if predictor not in (1, 2):
            raise InvalidImage("the TIFF file's predictor is not known")
        values = raw.view(np.dtype(f"{self.page.order}u{size}")).astype(f"u{size}").reshape(shape)
        if predictor == 2:
            values = np.cumsum(values, axis=1, dtype=values.dtype)
        return values.view(self.dtype)
