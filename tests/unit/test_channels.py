"""One rule for `channels` and `channel`, whichever module reads the file."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import numpy as np
import pytest
import tifffile
from numpy.typing import NDArray
from PIL import Image

from serve_app.core.errors import InvalidRequest
from serve_app.core.limits import Limits
from serve_app.core.request import Reading
from serve_app.images.decode import Decoded, read_image

from ..hostile.images import chunk, tiff_of

HEIGHT, WIDTH = 6, 8
RNG = np.random.default_rng(0)
GRAY, GRAY_ALPHA, RGB, RGBA, FIVE, SEVEN = (
    RNG.integers(1, 255, (HEIGHT, WIDTH, n), np.uint8) for n in (1, 2, 3, 4, 5, 7)
)
COLOURS = RNG.integers(0, 65_536, (3, 256), np.uint16)


def saved(pixels: NDArray[np.uint8], mode: str, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image = Image.fromarray(pixels if pixels.shape[2] > 1 else pixels[:, :, 0])
    image.convert(mode).save(buffer, kind, **options)
    return buffer.getvalue()


def tiff(pixels: NDArray[Any], photometric: str, alpha: bool = False, **options: Any) -> bytes:
    buffer = io.BytesIO()
    more = pixels.shape[2] - {"rgb": 3, "separated": 4}.get(photometric, 1)
    extra = ["unspecified"] * (more - alpha) + ["unassalpha"] * alpha
    if options.get("planarconfig") == "separate":
        pixels = np.ascontiguousarray(pixels.transpose(2, 0, 1))
    elif pixels.shape[2] == 1:
        pixels = pixels[:, :, 0]
    else:
        options["planarconfig"] = "contig"
    if more:
        options["extrasamples"] = extra
    tifffile.imwrite(buffer, pixels, photometric=photometric, metadata=None, **options)
    return buffer.getvalue()


def png16(pixels: NDArray[np.uint8], colour: int, key: bytes = b"") -> bytes:
    height, width = pixels.shape[:2]
    header = struct.pack(">IIBBBBB", width, height, 16, colour, 0, 0, 0)
    rows = b"".join(b"\0" + (row.astype(">u2") * 257).tobytes() for row in pixels)
    transparent = chunk(b"tRNS", key) if key else b""
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + transparent
        + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    )  # fmt: skip


def deep(pixels: NDArray[np.uint8]) -> NDArray[np.uint16]:
    return pixels.astype(np.uint16) * 257


def palette_of(bits: int) -> bytes:
    content = bytes(HEIGHT * WIDTH * bits // 8)
    tags = {256: (WIDTH,), 257: (HEIGHT,), 258: (bits,), 262: (3,), 273: (-1,), 277: (1,)}
    tags |= {278: (HEIGHT,), 279: (len(content),), 320: (9,) * (3 << bits)}
    return tiff_of(tags, content)


def reversed_bits() -> bytes:
    tags = {256: (WIDTH,), 257: (HEIGHT,), 258: (8,), 262: (2,), 266: (2,), 273: (-1,), 277: (3,)}
    return tiff_of({**tags, 278: (HEIGHT,), 279: (RGB.size,)}, RGB.tobytes())


P = Image.fromarray(RGB).quantize(16)


def palette_png(**options: Any) -> bytes:
    buffer = io.BytesIO()
    P.save(buffer, "PNG", **options)
    return buffer.getvalue()


Row = tuple[bytes, int, tuple[int, ...], int | None]
TABLE: dict[str, Row] = {
    # file, channels, those used, which is transparency
    "gray PNG": (saved(GRAY, "L", "PNG"), 1, (0,), None),
    "gray PNG, 1 bit": (saved(GRAY, "1", "PNG"), 1, (0,), None),
    "gray PNG, key": (saved(GRAY, "L", "PNG", transparency=7), 2, (0,), 1),
    "gray PNG, 16 bits": (png16(GRAY, 0), 1, (0,), None),
    "gray PNG, 16 bits, key": (png16(GRAY, 0, b"\0\7"), 2, (0,), 1),
    "LA PNG": (saved(GRAY_ALPHA, "LA", "PNG"), 2, (0,), 1),
    "LA PNG, 16 bits": (png16(GRAY_ALPHA, 4), 2, (0,), 1),
    "RGB PNG": (saved(RGB, "RGB", "PNG"), 3, (0, 1, 2), None),
    "RGB PNG, key": (saved(RGB, "RGB", "PNG", transparency=(1, 2, 3)), 4, (0, 1, 2), 3),
    "RGB PNG, 16 bits": (png16(RGB, 2), 3, (0, 1, 2), None),
    "RGB PNG, 16 bits, key": (png16(RGB, 2, bytes(6)), 4, (0, 1, 2), 3),
    "RGBA PNG": (saved(RGBA, "RGBA", "PNG"), 4, (0, 1, 2), 3),
    "RGBA PNG, 16 bits": (png16(RGBA, 6), 4, (0, 1, 2), 3),
    "palette PNG": (palette_png(), 3, (0, 1, 2), None),
    "palette PNG, key": (palette_png(transparency=3), 4, (0, 1, 2), 3),
    "gray JPEG": (saved(GRAY, "L", "JPEG"), 1, (0,), None),
    "JPEG": (saved(RGB, "RGB", "JPEG"), 3, (0, 1, 2), None),
    "CMYK JPEG": (saved(RGB, "CMYK", "JPEG"), 3, (0, 1, 2), None),
    "RGBA WebP": (saved(RGBA, "RGBA", "WEBP", lossless=True), 4, (0, 1, 2), 3),
    "GIF": (saved(RGB, "P", "GIF"), 3, (0, 1, 2), None),
    "gray JPEG 2000": (saved(GRAY, "L", "JPEG2000"), 1, (0,), None),
    "RGBA JPEG 2000": (saved(RGBA, "RGBA", "JPEG2000"), 4, (0, 1, 2), 3),
    "gray TIFF": (tiff(GRAY, "minisblack"), 1, (0,), None),
    "gray TIFF, JPEG": (saved(GRAY, "L", "TIFF", compression="jpeg"), 1, (0,), None),
    "gray TIFF, fax": (saved(GRAY, "1", "TIFF", compression="group4"), 1, (0,), None),
    "gray TIFF and alpha": (tiff(GRAY_ALPHA, "minisblack", True), 2, (0,), 1),
    "gray TIFF and another": (tiff(GRAY_ALPHA, "minisblack"), 2, (0,), None),
    "gray TIFF, 16 bits, five": (tiff(deep(FIVE), "minisblack"), 5, (0, 1, 2), None),
    "RGB TIFF": (tiff(RGB, "rgb"), 3, (0, 1, 2), None),
    "RGB TIFF, JPEG": (saved(RGB, "RGB", "TIFF", compression="jpeg"), 3, (0, 1, 2), None),
    "RGB TIFF, bits reversed": (reversed_bits(), 3, (0, 1, 2), None),
    "RGBA TIFF": (tiff(RGBA, "rgb", True), 4, (0, 1, 2), 3),
    "RGBA TIFF, 16 bits": (tiff(deep(RGBA), "rgb", True), 4, (0, 1, 2), 3),
    "RGBA TIFF, LZW": (saved(RGBA, "RGBA", "TIFF", compression="tiff_lzw"), 4, (0, 1, 2), 3),
    "RGB TIFF and infrared": (tiff(RGBA, "rgb"), 4, (0, 1, 2), None),
    "RGB TIFF, infrared, alpha": (tiff(FIVE, "rgb", True), 5, (0, 1, 2), 4),
    "palette TIFF": (palette_of(8), 3, (0, 1, 2), None),
    "palette TIFF, 4 bits": (palette_of(4), 3, (0, 1, 2), None),
    "Lab TIFF": (saved(RGB, "LAB", "TIFF"), 3, (0, 1, 2), None),
    "YCbCr TIFF": (saved(RGB, "YCbCr", "TIFF"), 3, (0, 1, 2), None),
    "CMYK TIFF": (tiff(RGBA, "separated"), 3, (0, 1, 2), None),
    "CMYK TIFF, JPEG": (saved(RGB, "CMYK", "TIFF", compression="jpeg"), 3, (0, 1, 2), None),
    "CMYK TIFF, 16 bits": (tiff(deep(RGBA), "separated"), 3, (0, 1, 2), None),
    "CMYK TIFF and a spot": (tiff(FIVE, "separated"), 4, (0, 1, 2), None),
    "CMYK TIFF, alpha": (tiff(FIVE, "separated", True), 4, (0, 1, 2), 3),
    "CMYK TIFF, two spots, alpha": (tiff(SEVEN, "separated", True), 6, (0, 1, 2), 5),
    "CMYK TIFF, planar, a spot": (
        tiff(FIVE, "separated", planarconfig="separate"), 4, (0, 1, 2), None,
    ),
    "CMYK TIFF, 16 bits, three spots": (tiff(deep(SEVEN), "separated"), 6, (0, 1, 2), None),
}  # fmt: skip


def read(data: bytes, *channel: int) -> Decoded:
    return read_image(data, Limits(), Reading(channel=channel, scaling="image"))


@pytest.mark.parametrize("name", TABLE)
def test_channels_are_counted_and_numbered_alike(name: str) -> None:
    data, channels, used, alpha = TABLE[name]
    whole = read(data)
    assert whole.info is not None
    assert (whole.info.channels, whole.info.channel) == (channels, used)
    left = channels - len(used) - (alpha is not None)
    warned = [w.code for w in whole.warnings if w.code != "blank_image"]
    assert warned == (["more_channels"] if left else [])
    for channel in range(channels):
        one = read(data, channel)
        assert one.info is not None
        assert (one.info.channels, one.info.channel) == (channels, (channel,))
        assert [w.code for w in one.warnings if w.code != "blank_image"] == []
        assert (one.pixels == one.pixels[:, :, :1]).all()
        # Of 8 bits each is a part of the whole; of others each has a stretch of its own.
        if channel in used and whole.info.scaling == "none":
            assert (one.pixels[:, :, 0] == whole.pixels[:, :, used.index(channel)]).all()
    with pytest.raises(InvalidRequest, match=f"has {channels} channels"):
        read(data, channels)
    turned = read(data, *used[::-1])
    if len(used) == 3 and whole.info.scaling == "none":
        assert (turned.pixels == whole.pixels[:, :, ::-1]).all()


@pytest.mark.parametrize("name", [name for name, row in TABLE.items() if row[3] is not None])
def test_transparency_is_a_channel_that_can_be_chosen(name: str) -> None:
    """And then it is not composited over white."""
    data, _, used, alpha = TABLE[name]
    assert alpha is not None
    found = read(data, alpha, used[0], alpha).pixels
    assert (found[:, :, 0] == found[:, :, 2]).all()
    if name in ("LA PNG", "RGBA PNG", "RGBA WebP", "RGBA TIFF", "gray TIFF and alpha"):
        stored = GRAY_ALPHA if used == (0,) else RGBA
        assert (found == stored[:, :, [alpha, 0, alpha]]).all()


@pytest.mark.parametrize("dtype", ["u1", "u2"])
@pytest.mark.parametrize("planar", [False, True])
def test_inks_beside_cmyk(dtype: str, planar: bool) -> None:
    stored = SEVEN if dtype == "u1" else deep(SEVEN)
    data = tiff(stored, "separated", planarconfig="separate" if planar else "contig")
    inks = Image.fromarray(np.ascontiguousarray(SEVEN[:, :, :4]), mode="CMYK")
    rgb = np.asarray(inks.convert("RGB"))
    assert (read(data).pixels == rgb).all()
    for channel in (3, 4, 5):
        assert (read(data, channel).pixels[:, :, 0] == SEVEN[:, :, channel + 1]).all()
    mixed = np.stack([SEVEN[:, :, 6], rgb[:, :, 1], SEVEN[:, :, 4]], -1)
    assert (read(data, 5, 1, 3).pixels == mixed).all()


@pytest.mark.parametrize("alpha", ["unassalpha", "assocalpha"])
@pytest.mark.parametrize("dtype", ["u1", "u2"])
def test_alpha_beside_cmyk(alpha: str, dtype: str) -> None:
    inks = np.full((4, 6, 4), (0, 200, 100, 0), np.uint8)
    cover = np.full((4, 6, 1), 255, np.uint8)
    cover[:, :2], cover[:, 2:4] = 0, 128
    stored = inks if alpha == "unassalpha" else (inks * (cover / 255)).round()
    whole = np.concatenate([stored, cover], -1).astype(dtype) * (1 if dtype == "u1" else 257)
    buffer = io.BytesIO()
    tifffile.imwrite(
        buffer, whole, photometric="separated", planarconfig="contig", extrasamples=[alpha]
    )
    found = read(buffer.getvalue()).pixels.astype(int)
    rgb = np.asarray(Image.fromarray(inks, mode="CMYK").convert("RGB")).astype(int)
    share = cover / 255
    assert np.abs(found - (rgb * share + 255 * (1 - share))).max() <= 2
