"""A seeded generator of hostile and unusual image files, each named by its kind."""

from __future__ import annotations

import io
import pickle
import random
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import tifffile
from PIL import Image

Outcome = Literal["decoded", "refused", "either"]


@dataclass(frozen=True)
class HostileImage:
    """A file and what must become of it."""

    kind: str
    data: bytes
    outcome: Outcome


def picture(rng: random.Random, mode: str = "RGB") -> Image.Image:
    width, height = rng.randint(2, 90), rng.randint(2, 90)
    pixels = np.random.default_rng(rng.getrandbits(32)).integers(0, 256, (height, width, 3))
    return Image.fromarray(pixels.astype(np.uint8)).convert(mode)


def saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format=kind, **options)
    return buffer.getvalue()


def chunk(kind: bytes, content: bytes) -> bytes:
    body = kind + content
    return struct.pack(">I", len(content)) + body + struct.pack(">I", zlib.crc32(body))


HEIC = (Path(__file__).parent.parent / "assets" / "disc.heic").read_bytes()


def png_of(width: int, height: int, idat: bytes, before: bytes = b"", depth: int = 8) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, depth, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + before
        + chunk(b"IDAT", idat)
        + chunk(b"IEND", b"")
    )


def tiff_of(tags: Mapping[int, tuple[int, ...]], content: bytes = b"") -> bytes:
    """A little-endian TIFF of LONG tags; a value of -1 stands for the offset of ``content``."""
    directory = 8 + 2 + 12 * len(tags) + 4
    outside = sum(4 * len(v) for v in tags.values() if len(v) > 1)
    entries, body = b"", b""
    for tag, values in tags.items():
        numbers = [directory + outside if v == -1 else v for v in values]
        packed = struct.pack(f"<{len(numbers)}I", *numbers)
        if len(numbers) > 1:
            packed, body = struct.pack("<I", directory + len(body)), body + packed
        entries += struct.pack("<HHI", tag, 4, len(numbers)) + packed
    return b"II*\0\x08\0\0\0" + struct.pack("<H", len(tags)) + entries + bytes(4) + body + content


def segment(marker: int, content: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, marker, len(content) + 2) + content


def after_palette(gif: bytes) -> int:
    return 13 + (3 << (gif[10] & 7) + 1 if gif[10] & 0x80 else 0)


def any_format(rng: random.Random) -> bytes:
    kind = rng.choice(["JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF"])
    return saved(picture(rng), kind)


def truncated(rng: random.Random) -> bytes:
    kind = rng.choice(["JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF"])
    data = saved(picture(rng), kind)
    # The last bytes of some formats hold no pixels.
    return data[: rng.randrange(max(1, len(data) - 40))]


def flipped_bits(rng: random.Random) -> bytes:
    data = bytearray(any_format(rng))
    for _ in range(rng.randint(1, 20)):
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    return bytes(data)


def wrong_crc(rng: random.Random) -> bytes:
    data = bytearray(saved(picture(rng), "PNG"))
    data[29 + rng.randrange(4)] ^= 0xFF
    return bytes(data)


def huge_header(rng: random.Random) -> bytes:
    kind = rng.choice(["PNG", "GIF", "TIFF", "BMP", "WEBP", "JPEG"])
    side = 65_535
    if kind == "PNG":
        return png_of(side, side, zlib.compress(b""))
    data = bytearray(saved(picture(rng), kind))
    if kind == "GIF":
        data[6:10] = struct.pack("<HH", side, side)
    elif kind == "TIFF":
        return tiff_of({256: (side,), 257: (side,), 258: (8,), 262: (1,), 273: (8,), 279: (8,)})
    elif kind == "BMP":
        data[18:26] = struct.pack("<ii", side, side)
    elif kind == "WEBP":
        extended = bytes(4) + struct.pack("<I", side)[:3] + struct.pack("<I", side)[:3]
        body = b"WEBPVP8X" + struct.pack("<I", 10) + extended + bytes(data[12:])
        return b"RIFF" + struct.pack("<I", len(body)) + body
    else:
        at = data.index(b"\xff\xc0")
        data[at + 5 : at + 9] = struct.pack(">HH", side, side)
    return bytes(data)


def pixel_bomb(rng: random.Random) -> bytes:
    side = 16_000 + rng.randrange(300)
    packed = zlib.compressobj(9)
    row = bytes(side // 8 + 2)
    return png_of(side, side, b"".join(packed.compress(row) for _ in range(50)), depth=1)


def text_bomb(rng: random.Random) -> bytes:
    bomb = zlib.compress(bytes(2**25 + rng.randrange(2**20)), 9)
    before = chunk(b"zTXt", b"comment\0\0" + bomb) * rng.randint(1, 3)
    return png_of(4, 4, zlib.compress(bytes(20)), before)


def profile_bomb(rng: random.Random) -> bytes:
    bomb = zlib.compress(bytes(2**20 - 64), 9)
    before = chunk(b"iCCP", b"icc\0\0" + bomb) * rng.randint(2_000, 2_500)
    return png_of(4, 4, zlib.compress(bytes(20)), before)


def many_frames(rng: random.Random) -> bytes:
    if rng.random() < 0.5:
        control = struct.pack(">IIIIIHHBB", 0, 1, 1, 0, 0, 1, 10, 0, 0)
        frames = b"".join(
            chunk(b"fcTL", control) + chunk(b"fdAT", bytes(4) + zlib.compress(bytes(2)))
            for _ in range(10_000)
        )
        data = png_of(4, 4, zlib.compress(bytes(20)), chunk(b"acTL", struct.pack(">II", 10**4, 0)))
        return data[:-12] + frames + data[-12:]
    one = saved(picture(rng, "P"), "GIF")
    at = one.index(b",", after_palette(one))
    return one[:-1] + one[at:-1] * 300 + b";"


def progressive(rng: random.Random) -> bytes:
    return saved(picture(rng), "JPEG", progressive=True)


def scan_flood(rng: random.Random) -> bytes:
    data = saved(Image.new("L", (4_000, 4_000), rng.randrange(256)), "JPEG", progressive=True)
    last = data[data.rindex(b"\xff\xda") : -2]
    return data[:-2] + last * rng.randint(2_000, 3_000) + data[-2:]


def exif_flood(rng: random.Random) -> bytes:
    data = saved(picture(rng), "JPEG")
    return data[:2] + segment(0xE1, b"Exif\0\0ab") * rng.randint(30_000, 60_000) + data[2:]


def cmyk(rng: random.Random) -> bytes:
    return saved(picture(rng, "CMYK"), rng.choice(["JPEG", "TIFF"]))


def deep(rng: random.Random) -> bytes:
    values = np.random.default_rng(rng.getrandbits(32)).integers(0, 65_536, (13, 17))
    kind = rng.choice(["PNG", "TIFF", "F"])
    if kind == "F":
        with_nan = values.astype(np.float32)
        with_nan[3] = rng.choice([np.nan, np.inf, -np.inf])
        return saved(Image.fromarray(with_nan), "TIFF")
    return saved(Image.fromarray(values.astype(np.uint16)), kind)


def palette(rng: random.Random) -> bytes:
    return saved(picture(rng, "P"), rng.choice(["PNG", "GIF"]), transparency=rng.randrange(256))


def rotated(rng: random.Random) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = rng.randint(1, 8)
    return saved(picture(rng), rng.choice(["JPEG", "PNG", "WEBP"]), exif=exif)


def broken_exif(rng: random.Random) -> bytes:
    content = rng.choice(
        [
            b"II*\0\x08\0\0\0\xff\xff" + rng.randbytes(200),
            b"MM\0*\xff\xff\xff\xff",
            b"II*\0\x08\0\0\0\x01\0\x12\x01\x02\0\xff\xff\xff\xff\x08\0\0\0",
            rng.randbytes(60),
            b"",
        ]
    )
    return saved(picture(rng), rng.choice(["JPEG", "PNG", "WEBP"]), exif=b"Exif\0\0" + content)


def renamed(rng: random.Random) -> bytes:
    return rng.choice(
        [
            b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EOF\n",
            b"SIMPLE  =                    T / FITS".ljust(2_880),
            b"<svg xmlns='http://www.w3.org/2000/svg'/>",
            b"%PDF-1.7\n",
            b"\0\0\0\x18ftypheic",
            b"P3\n9 9\n255\n" + b"1 " * 300,
        ]
    )


def polyglot(rng: random.Random) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("../../evil.txt", rng.randbytes(30))
    return saved(picture(rng), "PNG") + buffer.getvalue()


def no_pixels(rng: random.Random) -> bytes:
    width, height = rng.choice([(0, 0), (0, 5), (5, 0)])
    if rng.random() < 0.5:
        return png_of(width, height, zlib.compress(b""))
    tags = {256: (width,), 257: (height,), 258: (8,), 262: (1,), 273: (8,), 279: (1,)}
    return tiff_of(tags)


def one_pixel(rng: random.Random) -> bytes:
    size = rng.choice([(1, 1), (1, 77), (77, 1)])
    kind = rng.choice(["JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF"])
    return saved(Image.new("RGB", size, rng.randrange(2**24)), kind)


def needle(rng: random.Random) -> bytes:
    size = rng.choice([(1, 30_000), (30_000, 1)])
    return saved(Image.new("L", size), rng.choice(["PNG", "JPEG", "BMP"]))


def junk(rng: random.Random) -> bytes:
    start = rng.choice([b"", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"GIF89a", b"BM", b"II*\0"])
    return start + rng.randbytes(rng.randrange(3_000))


def strip_flood(rng: random.Random) -> bytes:
    n = rng.randint(600_000, 700_000)
    tags = {256: (8,), 257: (8,), 258: (8,), 262: (1,), 273: (8,) * n, 278: (1,), 279: (8,) * n}
    return tiff_of(tags)


def tile_bomb(rng: random.Random) -> bytes:
    width, height = 32_768, 2_048 + 16 * rng.randrange(100)
    packed = zlib.compress(bytes(width * height), 9)
    return tiff_of(
        {256: (16,), 257: (16,), 258: (8,), 259: (8,), 262: (1,), 322: (width,), 323: (height,)}
        | {324: (-1,), 325: (len(packed),)},
        packed,
    )


def tiff_pages(rng: random.Random) -> bytes:
    """Many directories, each of one tag, or a chain that leads back."""
    data = tiff_of({256: (4,), 257: (4,), 258: (16,), 262: (1,), 273: (8,), 279: (32,)})
    at = 8 + 2 + 6 * 12
    if rng.random() < 0.5:
        return data[:at] + struct.pack("<I", 8) + bytes(40)
    count = rng.randint(200_000, 300_000)
    pages = b"".join(
        struct.pack("<HHHII", 1, 256, 4, 1, 4) + struct.pack("<I", len(data) + 18 * (n + 1))
        for n in range(count)
    )
    return data[:at] + struct.pack("<I", len(data)) + data[at + 4 :] + pages


def tiff_directories(rng: random.Random) -> bytes:
    """A megabyte of directories that lie over each other, with thousands of tags each."""
    tags, step, count = 4_096, 64, rng.randint(15_000, 16_000)
    data = bytearray(8 + step * count + 12 * tags + 6)
    data[:8] = b"II*\0" + struct.pack("<I", 8)
    for at in range(8, 8 + step * count, step):
        struct.pack_into("<H", data, at, tags)
        struct.pack_into("<I", data, at + 2 + 12 * tags, at + step)
    return bytes(data)


def tiff_long_tags(rng: random.Random) -> bytes:
    """Pages that share one tag of very many values, of which the first alone has a meaning."""
    values, count = 250_000, rng.randint(10_000, 12_000)
    pages = 8 + 4 * values
    shared = b"".join(
        struct.pack("<HHHII", 1, 254, 4, values, 8) + struct.pack("<I", pages + 18 * (n + 1))
        for n in range(count)
    )
    return b"II*\0" + struct.pack("<I", pages) + bytes(4 * values) + shared


def tiff_counts(rng: random.Random) -> bytes:
    """A tag that announces more values than the file can hold."""
    tags = {256: (4,), 257: (4,), 258: (16,), 262: (1,), 273: (8,), 277: (1,), 279: (32,)}
    data = bytearray(tiff_of({**tags, 338: (0,), 339: (1,)}))
    at = 10 + 12 * rng.choice([2, 4, 6, 7, 8])
    data[at + 4 : at + 8] = struct.pack("<I", rng.choice([2**31, 2**32 - 1, 10**6]))
    return bytes(data) + bytes(64)


def tiff_overlap(rng: random.Random) -> bytes:
    """Each strip is the whole file again."""
    n, content = 16_000, bytes(2**20)
    size = len(content)
    tags = {256: (4_000,), 257: (n,), 258: (16,), 259: (8,), 262: (1,), 273: (-1,) * n}
    return tiff_of({**tags, 277: (1,), 278: (1,), 279: (size,) * n}, content)


def tiff_shared_tiles(rng: random.Random) -> bytes:
    """A picture one pixel wide in wide tiles, which all are the same few bytes."""
    height, across = rng.choice([(100, 16_384), (4_000, 1_024)])
    channels, bits = rng.choice([(2_000, 64), (500, 32), (4_000, 8)])
    packed = zlib.compress(bytes(across * min(channels * bits // 8, 4_096)), 9)
    tags = {256: (1,), 257: (height,), 258: (bits,), 259: (8,), 262: (1,), 277: (channels,)}
    tags |= {322: (across,), 323: (1,), 324: (-1,) * height, 325: (len(packed),) * height}
    return tiff_of(tags, packed)


def tiff_pillow_work(rng: random.Random) -> bytes:
    """Pages that Pillow reads, of 4-bit palettes: shared wide tiles, or overlapping strips."""
    tags = {258: (4,), 259: (8,), 262: (3,), 277: (1,), 320: (0,) * 48}
    if rng.random() < 0.5:
        n, packed = 16_384, zlib.compress(bytes(8_192 * 64), 9)
        tags |= {256: (1,), 257: (n,), 322: (16_384,), 323: (64,)}
        return tiff_of({**tags, 324: (-1,) * (n // 64), 325: (len(packed),) * (n // 64)}, packed)
    n, content = 16_000, zlib.compress(bytes(8)) + bytes(2**20)
    tags |= {256: (16,), 257: (n,), 278: (1,), 273: (-1,) * n, 279: (len(content),) * n}
    return tiff_of(dict(sorted(tags.items())), content)


def tiff_negative_sizes(rng: random.Random) -> bytes:
    """Sizes that overlap, and one so far below zero that their sum does not show it."""
    n, content = 2_000, bytes(2**20)
    tags = {256: (n,), 257: (1,), 258: (8,), 259: (1,), 262: (1,), 277: (1,), 322: (1,), 323: (1,)}
    sizes = (len(content),) * (n - 1) + (2**31,)
    data = bytearray(tiff_of({**tags, 324: (-1,) * n, 325: sizes}, content))
    kind = 10 + 12 * 9 + 2
    data[kind : kind + 2] = struct.pack("<H", rng.choice([9, 11]))  # SLONG, FLOAT
    return bytes(data)


def tiff_small_tiles(rng: random.Random) -> bytes:
    """Each pixel in a tile of its own."""
    side, packed = 500, zlib.compress(b"\5")
    codec, piece = rng.choice([(8, packed), (1, b"\5")])
    tags = {256: (side,), 257: (side,), 258: (8,), 259: (codec,), 262: (1,), 277: (1,)}
    tags |= {322: (1,), 323: (1,), 324: (-1,) * side**2, 325: (len(piece),) * side**2}
    return tiff_of(tags, piece)


def hidden_codestream(rng: random.Random) -> bytes:
    """JPEG 2000 with the header of a small picture in a box before that of a large one."""
    small = saved(Image.new("L", (8, 8)), "JPEG2000", no_jp2=True)
    data = bytearray(saved(picture(rng), "JPEG2000"))
    at = data.index(b"\xff\x4f\xff\x51")
    data[at + 8 : at + 16] = struct.pack(">II", 60_000, 60_000)
    box = struct.pack(">I4s", 8 + 16 + len(small), b"uuid") + rng.randbytes(16) + small
    begin = at - 8
    return bytes(data[:begin] + box + data[begin:])


def animation_in_a_text(rng: random.Random) -> bytes:
    before = chunk(b"tEXt", b"Comment\0" + rng.randbytes(9) + b"acTL")
    return png_of(4, 4, zlib.compress(bytes(20)), before)


def tiff_channels(rng: random.Random) -> bytes:
    """More samples than the limits for pixels suggest, in the image or in a tile."""
    packed = zlib.compress(bytes(2**24), 9)
    side = rng.choice([16, 4_000])
    tags = {256: (side,), 257: (side,), 258: (64,), 259: (8,), 262: (1,), 277: (60_000,)}
    if side == 4_000:
        return tiff_of({**tags, 273: (-1,), 278: (side,), 279: (len(packed),)}, packed)
    return tiff_of({**tags, 322: (4_096,), 323: (4_096,), 324: (-1,), 325: (len(packed),)}, packed)


def deep_bomb(rng: random.Random) -> bytes:
    """One strip that decompresses to a hundred times what the image needs."""
    packed = zlib.compress(bytes(2**28 + rng.randrange(2**10)), 9)
    tags = {256: (640,), 257: (480,), 258: (16,), 259: (8,), 262: (1,), 273: (-1,), 277: (1,)}
    return tiff_of({**tags, 278: (480,), 279: (len(packed),)}, packed)


def unreal_floats(rng: random.Random) -> bytes:
    dtype = rng.choice(["<f4", "<f8"])
    values = np.array([np.nan, np.inf, -np.inf, 3e38, -3e38, 1e-40, 0], dtype)
    content = np.random.default_rng(rng.getrandbits(32)).choice(values, 64 * 64).tobytes()
    bits = 8 * np.dtype(dtype).itemsize
    tags = {256: (64,), 257: (64,), 258: (bits,), 262: (1,), 273: (-1,), 277: (1,), 278: (64,)}
    return tiff_of({**tags, 279: (len(content),), 339: (3,)}, content)


def flipped_deep(rng: random.Random) -> bytes:
    """A 16-bit file of several pages and strips with damaged bits, most in its directories."""
    values = np.random.default_rng(rng.getrandbits(32)).integers(0, 2**16, (3, 9, 11), np.uint16)
    options = {"rowsperstrip": 2, "compression": rng.choice([None, "zlib"])}
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, values, photometric="minisblack", **options)
    data = bytearray(buffer.getvalue())
    for _ in range(rng.randint(1, 12)):
        data[rng.randrange(min(len(data), 400))] ^= 1 << rng.randrange(8)
    return bytes(data)


def new_format(rng: random.Random) -> bytes:
    kind = rng.choice(["AVIF", "JPEG2000", "HEIC"])
    data = bytearray(HEIC if kind == "HEIC" else saved(picture(rng), kind))
    if rng.random() < 0.3:
        return bytes(data[: rng.randrange(len(data))])
    for _ in range(rng.randint(1, 20)):
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    return bytes(data)


def huge_new_format(rng: random.Random) -> bytes:
    """A header of JPEG 2000 or AVIF that announces more pixels than the limits."""
    if rng.random() < 0.5:
        data = bytearray(saved(picture(rng), "JPEG2000", no_jp2=True))
        data[8:16] = struct.pack(">II", 60_000, 60_000)
    else:
        data = bytearray(saved(picture(rng), "AVIF"))
        at = data.index(b"ispe") + 8
        data[at : at + 8] = struct.pack(">II", 16_000, 16_000)
    return bytes(data)


def comment_flood(rng: random.Random) -> bytes:
    data = saved(picture(rng, "P"), "GIF")
    at = after_palette(data)
    return data[:at] + b"!\xfe" + b"\x01a" * rng.randint(10**6, 2 * 10**6) + b"\0" + data[at:]


def slow_bmp(rng: random.Random) -> bytes:
    side = 2_000
    rows = (b"\x01\x05" * side + b"\0\0") * side
    header = struct.pack("<IiiHHIIiiII", 40, side, side, 1, 8, 1, len(rows), 0, 0, 256, 0)
    start = 14 + 40 + 1_024
    return (
        b"BM" + struct.pack("<IHHI", start + len(rows), 0, 0, start) + header + bytes(1024) + rows
    )


class Canary:
    """Unpickled, it leaves a file at ``path``."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (open, (str(self.path), "w"))


def pickle_canary(path: Path) -> Callable[[random.Random], bytes]:
    def make(rng: random.Random) -> bytes:
        payload = pickle.dumps(Canary(path))
        if rng.random() < 0.5:
            return payload
        return png_of(4, 4, zlib.compress(bytes(20)), chunk(b"tEXt", b"x\0" + payload))

    return make


def hostile_images(count: int, seed: int, canary: Path) -> Iterator[HostileImage]:
    """``count`` files, all kinds in turn, the same for the same ``seed``."""
    kinds: list[tuple[str, Callable[[random.Random], bytes], Outcome]] = [
        ("truncated", truncated, "refused"),
        ("flipped bits", flipped_bits, "either"),
        ("wrong CRC", wrong_crc, "refused"),
        ("65535 squared header", huge_header, "refused"),
        ("16k squared bomb", pixel_bomb, "refused"),
        ("zTXt bomb", text_bomb, "decoded"),
        ("iCCP bomb", profile_bomb, "decoded"),
        ("many frames", many_frames, "decoded"),
        ("progressive JPEG", progressive, "decoded"),
        ("JPEG scan flood", scan_flood, "refused"),
        ("EXIF flood", exif_flood, "decoded"),
        ("CMYK", cmyk, "decoded"),
        ("16 bits and floats", deep, "decoded"),
        ("palette", palette, "decoded"),
        ("EXIF rotation", rotated, "decoded"),
        ("broken EXIF", broken_exif, "decoded"),
        ("another format renamed", renamed, "refused"),
        ("PNG and zip polyglot", polyglot, "decoded"),
        ("zero side", no_pixels, "refused"),
        ("one pixel", one_pixel, "decoded"),
        ("1 x 30000", needle, "refused"),
        ("junk", junk, "refused"),
        ("TIFF strip flood", strip_flood, "refused"),
        ("TIFF tile bomb", tile_bomb, "refused"),
        ("TIFF page flood or loop", tiff_pages, "either"),
        ("TIFF overlapping directories", tiff_directories, "refused"),
        ("TIFF long tags", tiff_long_tags, "refused"),
        ("TIFF counts", tiff_counts, "either"),
        ("TIFF overlapping strips", tiff_overlap, "refused"),
        ("TIFF channels", tiff_channels, "refused"),
        ("TIFF shared wide tiles", tiff_shared_tiles, "refused"),
        ("TIFF work for Pillow", tiff_pillow_work, "refused"),
        ("TIFF negative sizes", tiff_negative_sizes, "refused"),
        ("TIFF tiles of a pixel", tiff_small_tiles, "refused"),
        ("JPEG 2000 hidden codestream", hidden_codestream, "refused"),
        ("PNG text acTL", animation_in_a_text, "decoded"),
        ("16-bit deflate bomb", deep_bomb, "either"),
        ("NaN and infinite TIFF", unreal_floats, "decoded"),
        ("flipped bits, 16-bit TIFF", flipped_deep, "either"),
        ("flipped bits, AVIF, HEIC and JPEG 2000", new_format, "either"),
        ("huge AVIF and JPEG 2000", huge_new_format, "refused"),
        ("GIF comment flood", comment_flood, "refused"),
        ("BMP run lengths", slow_bmp, "refused"),
        ("pickle canary", pickle_canary(canary), "either"),
    ]
    rng = random.Random(seed)
    for index in range(count):
        name, make, outcome = kinds[index % len(kinds)]
        yield HostileImage(name, make(rng), outcome)
