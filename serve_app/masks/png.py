"""A mask as a PNG file, written from its runs.

The file is an 8-bit gray image of 0 and 255, which every reader takes for a mask.  Its image data
is one run of equal bytes after the other, so neither the image nor a search for repetitions is
needed: each run is a literal byte and copies of the byte before it (RFC 1951), and the checksum of
a run is a sum (RFC 1950).  The cost is that of the boundary; 258 equal bytes take two bits.
"""

from __future__ import annotations

import struct
import zlib

import numpy as np
from numpy.typing import NDArray

from serve_app.core.rle import Ints, Rle
from serve_app.masks.compiled import compiled
from serve_app.masks.runs import row_changes

_LONGEST = 258
"""Bytes of the longest copy."""

_END = 256

_BASES = np.array([*range(3, 11), *range(11, 19, 2), *range(19, 35, 4), *range(35, 67, 8),
                   *range(67, 131, 16), *range(131, 258, 32), _LONGEST])  # fmt: skip
"""The shortest copy of each symbol from 257 on (RFC 1951, 3.2.5)."""

_EXTRA = np.array([*[0] * 8, *[1] * 4, *[2] * 4, *[3] * 4, *[4] * 4, *[5] * 4, 0])
"""The bits after each symbol, which are added to its base."""


def _code_lengths() -> list[int]:
    """Bits of each symbol: one for the longest copy, of which an image's zeros consist."""
    lengths = [0] * 286
    lengths[285] = 1
    lengths[0] = lengths[255] = 3
    lengths[256:285] = [7] * 29
    lengths[257:260] = [6] * 3  # so that the code is complete
    return lengths


def _codes(lengths: list[int]) -> list[int]:
    """The canonical code of each symbol, its first bit lowest."""
    codes, code = [0] * len(lengths), 0
    for bits in range(1, max(lengths) + 1):
        for symbol, length in enumerate(lengths):
            if length == bits:
                codes[symbol] = int(f"{code:0{bits}b}"[::-1], 2)
                code += 1
        code <<= 1
    return codes


def _head(lengths: list[int]) -> tuple[int, int]:
    """The bits at the start of the one block, which describe its code, and their number."""
    bits, count = 0b101, 3  # the last block, with a code of its own

    def put(value: int, width: int) -> None:
        nonlocal bits, count
        bits |= value << count
        count += width

    put(len(lengths) - 257, 5)
    put(0, 5)  # one distance
    order = (16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1)
    # The lengths that occur, and 18: a number of zeros.
    bits_of = {0: 2, 1: 2, 3: 3, 6: 3, 7: 3, 18: 3}
    used = [bits_of.get(symbol, 0) for symbol in range(19)]
    put(len(order) - 4, 4)
    for symbol in order:
        put(used[symbol], 3)
    codes = _codes(used)
    todo = [*lengths, 1]
    at = 0
    while at < len(todo):
        zeros = 0
        while at + zeros < len(todo) and zeros < 138 and todo[at + zeros] == 0:
            zeros += 1
        if zeros >= 11:
            put(codes[18], used[18])
            put(zeros - 11, 7)
            at += zeros
        else:
            put(codes[todo[at]], used[todo[at]])
            at += 1
    return bits, count


_LENGTHS = _code_lengths()
_CODES = np.array(_codes(_LENGTHS), np.int64)
_WIDTHS = np.array(_LENGTHS, np.int64)
_HEAD_BITS, _HEAD_COUNT = _head(_LENGTHS)
_HEAD = np.frombuffer(bytearray(_HEAD_BITS.to_bytes(-(-_HEAD_COUNT // 8), "little")), np.uint8)
_SYMBOLS = np.searchsorted(_BASES, np.arange(_LONGEST + 1), side="right") + _END


def mask_png(rle: Rle) -> bytes:
    """Return the mask as a PNG file: 8-bit gray, 0 and 255."""
    height, width = rle.size
    starts, xs = row_changes(rle)
    tables = (_HEAD, _HEAD_COUNT, _CODES, _WIDTHS, _SYMBOLS, _BASES, _EXTRA)
    data = _deflated(starts, xs, width, *tables)
    chunks = (
        (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)),
        (b"IDAT", data.tobytes()),
        (b"IEND", b""),
    )
    file = bytearray(b"\x89PNG\r\n\x1a\n")
    for kind, content in chunks:
        body = kind + content
        file += struct.pack(">I", len(content)) + body + struct.pack(">I", zlib.crc32(body))
    return bytes(file)


@compiled
def _deflated(
    starts: Ints,
    xs: Ints,
    width: int,
    head: NDArray[np.uint8],
    head_bits: int,
    codes: Ints,
    widths: Ints,
    symbols: Ints,
    bases: Ints,
    extra: Ints,
) -> NDArray[np.uint8]:
    """The rows of a mask, each after a byte for "no filter", as a zlib stream.

    Args:
        starts, xs: the changes along the rows.
    """
    height = len(starts) - 1
    line = width + 1
    # A run takes at most two bytes, and two bits for each 258 bytes that it copies.
    out = np.zeros(64 + len(head) + 2 * (len(xs) + 2) + height * line // 1032 + 8, np.uint8)
    out[0], out[1] = 0x78, 0x01
    size = 2
    for i in range(head_bits // 8):
        out[size] = head[i]
        size += 1
    held = np.int64(head[-1]) if head_bits % 8 else np.int64(0)
    bits = head_bits % 8
    low, high = np.int64(1), np.int64(0)  # the two sums of Adler-32
    at = np.int64(0)
    value = 0
    row = 0
    for i in range(len(xs) + 1):
        if i < len(xs):
            while starts[row + 1] <= i:
                row += 1
            end = row * line + 1 + xs[i]
        else:
            end = np.int64(height * line)
        run = end - at
        at = end
        high = (high + run * low + value * (run * (run + 1) // 2)) % 65521
        low = (low + value * run) % 65521
        # The first byte, then copies; what is too short for a copy as bytes.
        literals = min(run, 1)
        left = run - literals
        longest = left // 258
        left -= longest * 258
        if left < 3:
            literals += left
            left = np.int64(0)
        for _ in range(literals):
            held |= codes[value] << bits
            bits += widths[value]
        while bits >= 8:
            out[size] = held & 0xFF
            size += 1
            held >>= 8
            bits -= 8
        # Each longest copy is two zero bits: its symbol, and the distance of one byte.
        bits += 2 * longest
        if bits >= 8:
            out[size] = held
            size += bits // 8
            held = np.int64(0)
            bits %= 8
        if left:
            symbol = symbols[left]
            held |= codes[symbol] << bits
            bits += widths[symbol]
            held |= (left - bases[symbol - 257]) << bits
            bits += extra[symbol - 257] + 1
            while bits >= 8:
                out[size] = held & 0xFF
                size += 1
                held >>= 8
                bits -= 8
        value = 255 - value
    held |= codes[256] << bits
    bits += widths[256]
    while bits > 0:
        out[size] = held & 0xFF
        size += 1
        held >>= 8
        bits -= 8
    for part in (high, low):
        out[size] = part >> 8
        out[size + 1] = part & 0xFF
        size += 2
    return out[:size]
