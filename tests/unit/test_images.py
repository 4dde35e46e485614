from __future__ import annotations

import io
import struct
import subprocess
import sys
import zlib
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageCms
from PIL.GifImagePlugin import GifImageFile

from serve_app.core.errors import ImageTooLarge, InvalidImage
from serve_app.core.limits import Limits
from serve_app.core.types import RgbArray
from serve_app.images.containers import plain_file
from serve_app.images.decode import check_pixels, decode_image
from serve_app.images.scaling import scaled_to_8_bits

LIMITS = Limits()

# Four colours, one for each quarter, so that each of the eight orientations differs; flat enough
# to survive JPEG.
UPRIGHT = np.zeros((48, 80, 3), np.uint8)
UPRIGHT[:24, :40] = (250, 20, 20)
UPRIGHT[:24, 40:] = (20, 250, 20)
UPRIGHT[24:, :40] = (20, 20, 250)
UPRIGHT[24:, 40:] = (240, 240, 240)

FAITHFUL: dict[str, dict[str, Any]] = {
    "WEBP": {"lossless": True},
    "JPEG": {"quality": 100, "subsampling": 0},
}


def file_of(image: Image.Image | NDArray[Any], kind: str = "PNG", **options: Any) -> bytes:
    image = image if isinstance(image, Image.Image) else Image.fromarray(image)
    buffer = io.BytesIO()
    image.save(buffer, format=kind, **options)
    return buffer.getvalue()


def mode_of(data: bytes) -> str:
    return Image.open(io.BytesIO(data)).mode


def pixels_of(data: bytes) -> RgbArray:
    return decode_image(data, LIMITS)


def close(a: RgbArray, b: RgbArray, tolerance: int) -> bool:
    return a.shape == b.shape and int(np.abs(a.astype(int) - b.astype(int)).max()) <= tolerance


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "BMP", "GIF", "WEBP", "JPEG"])
def test_each_format_decodes_to_its_pixels(kind: str) -> None:
    data = file_of(UPRIGHT, kind, **FAITHFUL.get(kind, {}))
    assert mode_of(data) == ("P" if kind == "GIF" else "RGB")
    pixels = decode_image(data, LIMITS)
    assert close(pixels, UPRIGHT, 4 if kind == "JPEG" else 0)
    assert pixels.dtype == np.uint8
    assert pixels.flags.c_contiguous
    assert not pixels.flags.writeable


# How a camera that is held as EXIF's orientation says stores the upright picture.
STORED = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: a.transpose(1, 0, 2)[::-1],
    7: lambda a: a.transpose(1, 0, 2)[::-1, ::-1],
    8: lambda a: a.transpose(1, 0, 2)[:, ::-1],
}


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(orientation: int, kind: str) -> None:
    stored = np.ascontiguousarray(STORED[orientation](UPRIGHT))
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = file_of(stored, kind, exif=exif, **FAITHFUL.get(kind, {}))
    assert close(pixels_of(data), UPRIGHT, 6)


@pytest.mark.parametrize(
    "exif",
    [
        b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x63\0\0\0\0\0\0\0",
        b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x02\0\x04\0\0\0six\0\0\0\0\0",
        b"Exif\0\0II*\0\xff\xff\xff\xff",
        b"Exif\0\0junk",
        b"Exif\0\0",
    ],
    ids=["orientation 99", "a text", "offset outside", "junk", "empty"],
)
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_broken_exif_is_ignored(exif: bytes, kind: str) -> None:
    assert pixels_of(file_of(UPRIGHT, kind, exif=exif)).shape == UPRIGHT.shape


def test_gray_is_repeated() -> None:
    gray = np.arange(256, dtype=np.uint8).reshape(8, 32)
    expected = np.stack([gray] * 3, axis=-1)
    assert (pixels_of(file_of(gray)) == expected).all()
    bits = Image.fromarray(gray > 100)
    assert (pixels_of(file_of(bits))[..., 1] == np.where(gray > 100, 255, 0)).all()


def test_transparency_is_laid_on_white() -> None:
    rgba = np.zeros((2, 3, 4), np.uint8)
    rgba[..., 0] = 200
    rgba[0, :, 3] = (0, 128, 255)
    rgba[1, :, 3] = 255
    pixels = pixels_of(file_of(rgba))
    assert pixels[0, 0].tolist() == [255, 255, 255]
    assert close(pixels[:1, 1:2], np.array([[[227, 127, 127]]], np.uint8), 1)
    assert pixels[0, 2].tolist() == pixels[1, 0].tolist() == [200, 0, 0]


def test_gray_with_alpha_and_transparent_gray() -> None:
    with_alpha = Image.fromarray(np.array([[[10, 0], [10, 255]]], np.uint8))
    assert with_alpha.mode == "LA"
    assert pixels_of(file_of(with_alpha))[0, :, 0].tolist() == [255, 10]
    gray = Image.fromarray(np.array([[10, 20]], np.uint8))
    assert pixels_of(file_of(gray, transparency=10))[0, :, 0].tolist() == [255, 20]


@pytest.mark.parametrize("kind", ["PNG", "GIF"])
def test_palette_with_and_without_transparency(kind: str) -> None:
    image = Image.fromarray(np.array([[0, 1, 2]], np.uint8)).convert("L")
    image.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255])
    assert image.mode == "P"
    rgb = [[255, 0, 0], [0, 255, 0], [0, 0, 255]]
    assert pixels_of(file_of(image, kind)).tolist() == [rgb]
    rgb[1] = [255, 255, 255]
    assert pixels_of(file_of(image, kind, transparency=1)).tolist() == [rgb]


@pytest.mark.parametrize("kind", ["JPEG", "TIFF"])
def test_cmyk_white_is_white(kind: str) -> None:
    # Pillow writes the Adobe marker and inverted inks into JPEG, as Photoshop does.
    inks = np.zeros((16, 32, 4), np.uint8)
    inks[:, 16:] = (0, 255, 255, 0)
    data = file_of(Image.fromarray(inks, mode="CMYK"), kind)
    if kind == "JPEG":
        assert b"Adobe" in data[:400]
    pixels = pixels_of(data)
    assert close(pixels[:, :8], np.full((16, 8, 3), 255, np.uint8), 3)
    assert close(pixels[:, 24:], np.full((16, 8, 3), (254, 0, 0), np.uint8), 4)


def test_ycbcr_and_lab_keep_their_colours() -> None:
    ycbcr = Image.fromarray(UPRIGHT).convert("YCbCr")
    assert close(pixels_of(file_of(ycbcr, "TIFF")), UPRIGHT, 4)
    lab = ImageCms.profileToProfile(
        Image.fromarray(UPRIGHT),
        ImageCms.createProfile("sRGB"),
        ImageCms.createProfile("LAB"),
        outputMode="LAB",
    )
    assert lab is not None
    data = file_of(lab, "TIFF")
    assert mode_of(data) == "LAB"
    assert close(decode_image(data, LIMITS), UPRIGHT, 12)


def scaled(values: NDArray[Any]) -> NDArray[np.uint8]:
    return scaled_to_8_bits(values[:, :, np.newaxis])[:, :, 0]


RAMP = np.linspace(2_000, 50_000, 40 * 50).reshape(40, 50)


@pytest.mark.parametrize(
    ("dtype", "kind"),
    [("<u2", "PNG"), ("<u2", "TIFF"), (">u2", "TIFF"), ("<i4", "TIFF"), ("<f4", "TIFF")],
)
def test_deep_gray_is_scaled_by_percentiles(dtype: str, kind: str) -> None:
    pixels = pixels_of(file_of(Image.fromarray(RAMP.astype(dtype)), kind))
    flat = pixels[..., 0].ravel().astype(int)
    assert (np.diff(flat) >= 0).all()
    assert (flat[0], flat[-1]) == (0, 255)
    assert len(np.unique(flat)) == 256
    # One percent of the pixels at each end is saturated.
    assert (flat == 0).sum() == pytest.approx(24, abs=2)
    assert (flat == 255).sum() == pytest.approx(24, abs=2)
    assert (pixels[..., 0] == pixels[..., 2]).all()


def test_a_hot_pixel_does_not_darken_the_rest() -> None:
    values = RAMP.astype(np.uint16) // 50
    values[3, 3] = 65_535
    assert pixels_of(file_of(values))[39, 49, 0] > 250


def test_large_images_are_converted_in_blocks_without_seams() -> None:
    pixels = np.random.default_rng(5).integers(0, 256, (1_300, 1_700, 3), dtype=np.uint8)
    assert (pixels_of(file_of(pixels, "BMP")) == pixels).all()
    deep = np.linspace(0, 65_535, 1_300 * 1_700).reshape(1_300, 1_700).astype(np.uint16)
    assert (np.diff(pixels_of(file_of(deep, "TIFF"))[..., 0].ravel().astype(int)) >= 0).all()


def test_constant_sparse_and_unreal_values() -> None:
    assert (pixels_of(file_of(np.full((9, 9), 40_000, np.uint16))) == 0).all()
    sparse = np.zeros((100, 100), np.uint16)
    sparse[5, 5] = 900
    assert pixels_of(file_of(sparse))[5, 5].tolist() == [255, 255, 255]
    unreal = np.array([[0, 1, 2, np.nan, np.inf, -np.inf]], np.float32)
    assert scaled(unreal).tolist() == [[0, 128, 255, 0, 0, 0]]
    assert (scaled(np.full((2, 2), np.nan)) == 0).all()
    big = np.array([[-(2**31), 0, 2**31 - 1]], np.int32)
    assert scaled(big).tolist() == [[0, 128, 255]]


def test_white_is_zero_tiffs_are_not_negatives() -> None:
    values = RAMP.astype("<u2")
    data = file_of(values, "TIFF", tiffinfo={262: 0})
    assert (np.diff(pixels_of(data)[..., 0].ravel().astype(int)) <= 0).all()


def chunk(kind: bytes, content: bytes) -> bytes:
    body = kind + content
    return struct.pack(">I", len(content)) + body + struct.pack(">I", zlib.crc32(body))


@pytest.mark.parametrize("kind", ["GIF", "PNG", "TIFF", "WEBP"])
def test_the_first_frame_is_taken(kind: str) -> None:
    frames = [Image.new("RGB", (8, 6), c) for c in ("red", "lime", "blue")]
    options: dict[str, Any] = {} if kind == "TIFF" else {"duration": 10, "disposal": 2}
    if kind == "WEBP":
        options = {"duration": 10, "lossless": True}
    data = file_of(frames[0], kind, save_all=True, append_images=frames[1:], **options)
    assert (pixels_of(data) == (255, 0, 0)).all()


def test_what_is_left_out_of_a_jpeg_changes_no_pixel() -> None:
    photo = np.random.default_rng(3).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    options = {"comment": b"x" * 999, "icc_profile": b"p" * 200_000, "progressive": True}
    data = file_of(photo, "JPEG", **options)
    with Image.open(io.BytesIO(data)) as image:
        expected = np.asarray(image.convert("RGB"))
    assert (pixels_of(data) == expected).all()


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "BMP", "GIF", "WEBP"])
def test_truncated_files_are_invalid(kind: str) -> None:
    noise = np.random.default_rng(4).integers(0, 256, (60, 60, 3), dtype=np.uint8)
    data = file_of(noise, kind)
    for share in (0.01, 0.3, 0.6, 0.9):
        with pytest.raises(InvalidImage):
            decode_image(data[: int(len(data) * share)], LIMITS)


@pytest.mark.parametrize("data", [b"", b"hello", b"<html>", bytes(5_000), b"RIFF1234WAVEfmt "])
def test_what_is_no_image_is_told_what_is(data: bytes) -> None:
    with pytest.raises(InvalidImage, match=r"JPEG, PNG, WebP|no bytes"):
        decode_image(data, LIMITS)


@pytest.mark.parametrize("kind", [ValueError, struct.error, SyntaxError, MemoryError, OSError])
def test_no_word_of_the_library_reaches_the_caller(
    kind: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: object, **options: object) -> None:
        raise kind("/secret/path <_io.BytesIO object at 0x7f00>")

    monkeypatch.setattr(Image, "open", fail)
    with pytest.raises(InvalidImage) as caught:
        decode_image(file_of(UPRIGHT), LIMITS)
    assert "/" not in caught.value.message
    assert "0x" not in caught.value.message


def test_a_gif_allocates_nothing_for_later_frames_before_its_size_is_checked() -> None:
    frames = [Image.new("P", (8, 6), n) for n in range(3)]
    data = file_of(frames[0], "GIF", save_all=True, append_images=frames[1:], disposal=2)
    with Image.open(io.BytesIO(data)) as as_sent:
        assert isinstance(as_sent, GifImageFile)
        assert as_sent.disposal_method == 2
    with Image.open(io.BytesIO(plain_file(data, LIMITS)[1])) as plain:
        assert isinstance(plain, GifImageFile)
        assert plain.disposal_method == 0


def test_limits_are_checked_before_the_pixels_are_read() -> None:
    header = struct.pack(">IIBBBBB", 300, 200, 8, 2, 0, 0, 0)
    # No valid pixel data: only the header can be the reason.
    data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"no pixels")
    data += chunk(b"IEND", b"")
    with pytest.raises(ImageTooLarge, match="300 x 200"):
        decode_image(data, Limits(max_image_pixels=59_999))
    with pytest.raises(ImageTooLarge, match="299 on a side"):
        decode_image(data, Limits(max_image_side=299))
    with pytest.raises(InvalidImage):
        decode_image(data, Limits(max_image_pixels=60_000, max_image_side=300))


def test_an_image_at_the_limits_is_decoded() -> None:
    data = file_of(np.zeros((20, 30, 3), np.uint8))
    limits = Limits(max_image_pixels=600, max_image_side=30)
    assert decode_image(data, limits).shape == (20, 30, 3)


def test_large_tiled_tiffs_are_read_within_the_limits() -> None:
    data = file_of(UPRIGHT, "TIFF", compression="tiff_lzw", tiffinfo={322: 64, 323: 64})
    assert (pixels_of(data) == UPRIGHT).all()


def test_caller_arrays_are_taken_as_they_are_and_not_changed() -> None:
    array = UPRIGHT.copy()
    checked = check_pixels(array, LIMITS)
    assert (checked == array).all()
    assert not checked.flags.writeable
    assert array.flags.writeable
    assert check_pixels(array[:, ::2], LIMITS).flags.c_contiguous


@pytest.mark.parametrize(
    ("array", "hint"),
    [
        ("a path", "numpy array"),
        (np.zeros((4, 5, 2), np.uint8), "4 x 5 x 2"),
        (np.zeros((3, 4, 5), np.uint8), "transpose"),
        (np.zeros((4, 5, 3), np.float32), "float32"),
        (np.zeros((), np.uint8), "scalar"),
        (np.zeros((0, 5, 3), np.uint8), "no pixels"),
    ],
)
def test_other_arrays_are_refused_with_a_hint(array: object, hint: str) -> None:
    with pytest.raises(InvalidImage, match=hint):
        check_pixels(array, LIMITS)


def test_caller_arrays_have_limits_too() -> None:
    with pytest.raises(ImageTooLarge):
        check_pixels(np.zeros((10, 10, 3), np.uint8), Limits(max_image_pixels=99))


def test_the_ingress_gets_no_torch_from_these_modules() -> None:
    code = (
        "import sys, serve_app.images.decode, serve_app.masks.operations, serve_app.core.request;"
        "sys.exit(any(m in sys.modules for m in ('torch', 'ray', 'fastapi')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
