"""Formats by their bytes: what is read, and what is refused by name."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from PIL import Image

from serve_app.core.errors import ImageTooLarge, InvalidImage, InvalidRequest
from serve_app.core.limits import Limits
from serve_app.core.request import Reading
from serve_app.images import containers
from serve_app.images.decode import decode_image, read_image
from serve_app.images.picture import _cover, _opaque

from ..hostile.images import chunk, png_of

LIMITS = Limits()
HEIC = (Path(__file__).parent.parent / "assets" / "disc.heic").read_bytes()


def scene() -> np.ndarray:
    y, x = np.mgrid[:200, :300]
    rgb = np.full((200, 300, 3), (60, 90, 70), np.uint8)
    rgb[np.hypot(x + 0.5 - 210, y + 0.5 - 120) < 45] = (220, 180, 60)
    return rgb


def saved(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def png_of_16_bits(samples: np.ndarray) -> bytes:
    """Pillow writes none with alpha or colours."""
    height, width, channels = samples.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in samples)
    colour = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    header = struct.pack(">IIBBBBB", width, height, 16, colour, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        for kind, body in chunks
    )


@pytest.mark.parametrize("kind", ["AVIF", "JPEG2000", "J2K", "HEIC"])
def test_new_formats_are_read(kind: str) -> None:
    image = Image.fromarray(scene())
    data = {
        "AVIF": lambda: saved(image, "AVIF", quality=95),
        "JPEG2000": lambda: saved(image, "JPEG2000"),
        "J2K": lambda: saved(image, "JPEG2000", no_jp2=True),
        "HEIC": lambda: HEIC,
    }[kind]()
    pixels, info, warnings = read_image(data, LIMITS)
    assert np.abs(pixels.astype(int) - scene()).mean() < 8
    assert (info, warnings) == (None, ())
    for limits in (Limits(max_image_pixels=59_999), Limits(max_image_side=299)):
        with pytest.raises(ImageTooLarge):
            decode_image(data, limits)
    for share in (0.1, 0.5, 0.9):
        with pytest.raises(InvalidImage):
            decode_image(data[: int(len(data) * share)], LIMITS)


def test_avif_and_heic_are_told_apart_and_turned_upright() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    data = saved(Image.fromarray(np.rot90(scene()).copy()), "AVIF", exif=exif, quality=95)
    assert np.abs(decode_image(data, LIMITS).astype(int) - scene()).mean() < 8


def test_heic_is_named_where_its_extra_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(containers, "heif_is_read", lambda: False)
    with pytest.raises(InvalidImage, match="this is HEIC"):
        decode_image(HEIC, LIMITS)


def test_deep_jpeg_2000_is_scaled_if_gray_and_refused_if_coloured() -> None:
    gray = np.arange(2_000, dtype=np.uint16).reshape(40, 50)
    pixels, info, _ = read_image(saved(Image.fromarray(gray), "JPEG2000"), LIMITS)
    assert (pixels.min(), pixels.max()) == (0, 255)
    assert info is not None
    assert info.bit_depth == 16
    data = bytearray(saved(Image.fromarray(scene()), "JPEG2000", no_jp2=True))
    data[42] = data[45] = data[48] = 15
    with pytest.raises(InvalidImage, match="3 channels of 16 bits"):
        decode_image(bytes(data), LIMITS)


@pytest.mark.parametrize(
    ("data", "name"),
    [
        (b"\xff\x0a\xfa\x7f", "JPEG XL"),
        (b"\0\0\0\x0cJXL \r\n\x87\n", "JPEG XL"),
        (b"%PDF-1.7", "PDF"),
        (b"\xef\xbb\xbf\n <svg xmlns='x'>", "SVG"),
        (b"<!DOCTYPE html>", "a web page"),
        (b"8BPS\0\1", "Photoshop"),
        (b"P6\n9 9\n255\n", "Netpbm"),
        (b"\x93NUMPY\1\0", "NumPy"),
        (struct.pack(">I", 24) + b"ftypisom\0\0\2\0isomiso2", "video"),
        (b"PK\3\4", "zip"),
        (bytes(128) + b"DICM", "DICOM"),
        (b"ZISRAWFILE", "CZI"),
        (b"RIFF\0\1\0\0AVI LIST", "AVI video"),
        (struct.pack(">I", 24) + b"ftypcrx \0\0\0\1crx isom", "raw camera data"),
        (b"FUJIFILMCCD-RAW 0201", "raw camera data"),
    ],
)
def test_what_is_not_read_is_named(data: bytes, name: str) -> None:
    with pytest.raises(InvalidImage, match=f"this is .*{name}.*send JPEG, PNG"):
        decode_image(data + bytes(100), LIMITS)


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "AVIF"])
def test_animations_are_told(kind: str) -> None:
    colours = np.zeros((6, 8, 3), np.uint8)
    colours[:3] = 255, 0, 0
    frames = [Image.fromarray(colours), Image.fromarray(colours[::-1].copy())]
    data = saved(frames[0], kind, save_all=True, append_images=frames[1:], duration=10)
    assert [w.code for w in read_image(data, LIMITS).warnings] == ["more_pages"]
    assert read_image(saved(frames[0], kind), LIMITS).warnings == ()
    with pytest.raises(InvalidRequest, match="TIFF"):
        read_image(data, LIMITS, Reading(page=1))


def test_channels_of_usual_pictures_can_be_chosen() -> None:
    rgb = scene()
    data = saved(Image.fromarray(rgb), "PNG")
    pixels, info, _ = read_image(data, LIMITS, Reading(channel=(1,)))
    assert (pixels == rgb[:, :, 1:2]).all()
    assert info is not None
    assert (info.format, info.channel, info.scaling) == ("PNG", (1,), "none")
    assert (decode_image(data, LIMITS, Reading(channel=(2, 1, 0))) == rgb[:, :, ::-1]).all()
    gray = saved(Image.fromarray(rgb[:, :, 0]), "PNG")
    for file, channel in ((data, 3), (gray, 1)):
        with pytest.raises(InvalidRequest, match="there is no channel"):
            decode_image(file, LIMITS, Reading(channel=(channel,)))


def test_jpegs_of_other_depths_are_named() -> None:
    data = saved(Image.fromarray(scene()), "JPEG")
    at = data.index(b"\xff\xc0")
    for marker, depth, words in ((0xC1, 12, "JPEG with 12 bits"), (0xC3, 16, "lossless JPEG")):
        other = data[:at] + bytes([0xFF, marker]) + data[at + 2 : at + 4] + bytes([depth])
        with pytest.raises(InvalidImage, match=words):
            decode_image(other + data[at + 5 :], LIMITS)


@pytest.mark.parametrize("depth", [1, 2, 4, 8])
def test_the_transparent_gray_of_any_depth(depth: int) -> None:
    """The key is given as stored, while samples are scaled to 8 bits."""
    most = 2**depth - 1
    values = np.random.default_rng(0).integers(0, most + 1, (4, 16)).astype(np.uint8)
    bits = np.unpackbits(values[:, :, np.newaxis], axis=2)[:, :, 8 - depth :]
    rows = np.packbits(bits.reshape(4, -1), axis=1)
    idat = zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows))
    for key in {0, 1, most}:
        data = png_of(16, 4, idat, chunk(b"tRNS", struct.pack(">H", key)), depth)
        expected = np.where(values == key, 255, values.astype(int) * 255 // most)
        assert (decode_image(data, LIMITS)[:, :, 0] == expected).all()


@pytest.mark.parametrize("large", [False, True])
def test_boxes_before_the_picture_of_a_jpeg_2000_file_are_passed(large: bool) -> None:
    """What stands in them is not its header."""
    data = saved(Image.fromarray(scene()), "JPEG2000")
    small = saved(Image.new("L", (8, 8)), "JPEG2000", no_jp2=True)
    at = data.index(b"jp2c") - 4
    content = bytes(16) + small
    size = (
        struct.pack(">I4sQ", 1, b"uuid", 16 + len(content))
        if large
        else (struct.pack(">I4s", 8 + len(content), b"uuid"))
    )
    data = data[:at] + size + content + data[at:]
    assert np.abs(decode_image(data, LIMITS).astype(int) - scene()).mean() < 8
    with pytest.raises(ImageTooLarge, match="two samples for each"):
        decode_image(data, Limits(max_image_pixels=61_000))


@pytest.mark.parametrize("size", [0, 1, 7, 2**31])
def test_boxes_that_lead_nowhere(size: int) -> None:
    data = saved(Image.fromarray(scene()), "JPEG2000")
    at = data.index(b"jp2c") - 4
    box = struct.pack(">I4s", size, b"uuid") + bytes(16)
    with pytest.raises(InvalidImage):
        decode_image(data[:at] + box + data[at:], LIMITS)


def test_a_text_that_names_the_chunk_of_animations() -> None:
    data = saved(Image.fromarray(scene()), "PNG")
    for content in (b"Comment\0converted from acTL", b"acTL\0\0\0\0\1\0\0\0\0"):
        text = chunk(b"tEXt", content)
        assert read_image(data[:33] + text + data[33:], LIMITS).warnings == ()


@pytest.mark.parametrize("given", [{"page": 0}, {"channel": (0, 1, 2)}, {"scaling": "image"}])
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF"])
def test_what_was_found_is_described_whenever_an_option_was_given(
    given: dict[str, Any], kind: str
) -> None:
    data = saved(Image.fromarray(scene()), kind)
    assert read_image(data, LIMITS).info is None
    found = read_image(data, LIMITS, Reading(**given))
    assert found.info is not None
    assert (found.info.format, found.info.page, found.info.scaling) == (kind, 0, "none")
    assert (found.pixels == decode_image(data, LIMITS)).all()


def test_an_animation_of_which_the_first_picture_was_chosen() -> None:
    frames = [Image.new("RGB", (8, 6), c) for c in ("red", "lime")]
    data = saved(frames[0], "GIF", save_all=True, append_images=frames[1:], duration=10)
    codes = {w.code for w in read_image(data, LIMITS, Reading(page=0)).warnings}
    assert "more_pages" not in codes


BLANK = np.full((6, 8, 3), (60, 90, 70), np.uint8)


@pytest.mark.parametrize("kind", ["PNG", "BMP", "GIF", "TIFF", "JPEG", "JPEG2000"])
@pytest.mark.parametrize("gray", [False, True])
def test_a_picture_of_one_colour_is_told(kind: str, gray: bool) -> None:
    image = Image.fromarray(BLANK[..., 0] if gray else BLANK)
    (warning,) = read_image(saved(image, kind), LIMITS).warnings
    assert warning.code == "blank_image"


def test_a_picture_that_is_wholly_transparent_is_told() -> None:
    rgba = np.dstack([scene(), np.zeros((200, 300), np.uint8)])
    for kind in ("PNG", "TIFF"):
        pixels, _, (warning,) = read_image(saved(Image.fromarray(rgba), kind), LIMITS)
        assert warning.code == "blank_image"
        assert pixels.min() == 255


@pytest.mark.parametrize("row", [0, 4_000, 8_191])
def test_a_picture_with_one_other_pixel_is_not_blank(row: int) -> None:
    pixels = np.full((8_192, 300, 3), 7, np.uint8)
    pixels[row, 299, 1] = 8
    assert read_image(saved(Image.fromarray(pixels), "BMP"), LIMITS).warnings == ()


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
@pytest.mark.parametrize("channels", [1, 3])
def test_alpha_of_fewer_bits_than_its_type(kind: str, bits: int, channels: int) -> None:
    """Opaque is the greatest value of a camera's depth, or of 8 bits in 16."""
    most = 2**bits - 1
    own = np.rint(scene() / 255 * most).astype(np.uint16)[..., :channels]
    alpha = np.full((200, 300, 1), most, np.uint16)
    alpha[:100] = 0
    samples = np.concatenate([own, alpha], -1)
    if kind == "PNG":
        data = png_of_16_bits(samples)
    else:
        buffer = io.BytesIO()
        photometric = "rgb" if channels == 3 else "minisblack"
        tifffile.imwrite(
            *(buffer, samples), photometric=photometric, planarconfig="contig",
            extrasamples=["unassalpha"],
        )  # fmt: skip
        data = buffer.getvalue()
    pixels, info, warnings = read_image(data, LIMITS)
    assert (pixels[:100] == 255).all()
    visible, wanted = pixels[100:, :, 0].astype(float), scene()[100:, :, 0].astype(float)
    assert np.corrcoef(visible.ravel(), wanted.ravel())[0, 1] > 0.999
    assert info is not None
    assert (info.channels, warnings) == (channels + 1, ())


@pytest.mark.parametrize(
    ("alpha", "cover"),
    [
        (np.array([[0, 200, 255]], np.uint16), [0, 200 / 255, 1]),
        (np.array([[0, 256, 1023]], np.uint16), [0, 256 / 1023, 1]),
        (np.array([[0, 40_000]], np.uint16), [0, 40_000 / 65_535]),
        (np.array([[0, 12_000]], np.uint16), [0, 12_000 / 65_535]),
        (np.array([[0, 1, 1.02]], np.float32), [0, 1, 1]),
        (np.array([[False, True]]), [0, 1]),
        (np.array([[0, 2**32 - 1]], np.uint32), [0, 1]),
        (np.array([[-5, 127]], np.int8), [0, 1]),
        (np.array([[0, 128]], np.uint8), [0, 128 / 255]),
        (np.array([[0, 0.25, np.nan, 1]], np.float32), [0, 0.25, 0, 1]),
        (np.array([[0, 51, 255]], np.float32), [0, 0.2, 1]),
        (np.array([[0, 0.5]], np.float64), [0, 0.5]),
        (np.zeros((1, 2), np.uint16), [0, 0]),
    ],
)
def test_alpha_as_a_share(alpha: np.ndarray, cover: list[float]) -> None:
    np.testing.assert_allclose(_cover(alpha, _opaque(alpha))[0, :, 0], cover, atol=1e-6)
