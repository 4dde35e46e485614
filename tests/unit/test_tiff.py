"""TIFF files of all kinds: the picture that comes out is the one that this test put in."""

from __future__ import annotations

import io
import struct
import subprocess
import sys
import zlib
from typing import Any

import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from serve_app.core.errors import ImageTooLarge, InvalidImage, InvalidRequest
from serve_app.core.limits import Limits
from serve_app.core.request import Reading
from serve_app.images import tiff_samples as tiff
from serve_app.images.decode import Decoded, decode_image, read_image
from serve_app.images.tiff_directory import pages_of

from ..hostile.images import tiff_of

LIMITS = Limits()
DTYPES = ["u1", "u2", "u4", "i1", "i2", "i4", "f2", "f4", "f8"]


def written(pixels: NDArray[Any], **options: Any) -> bytes:
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, pixels, **{"photometric": "minisblack", **options})
    return buffer.getvalue()


def read(data: bytes, **reading: Any) -> Decoded:
    return read_image(data, LIMITS, Reading(**reading))


def scene(height: int, width: int, channels: int, dtype: str) -> NDArray[Any]:
    """A ramp in every channel, in another direction and over another part of the range."""
    y, x = np.mgrid[:height, :width].astype(np.float64)
    ramps = [x + 2 * y, 3 * x + y, y * width + x, (x - y) % 7, x * y]
    whole = np.stack([ramps[n % 5] * (1 + n) for n in range(channels)], -1)
    unit = whole / max(1.0, whole.max())
    return (unit * (120 if dtype[0] != "u" else 250)).astype(dtype)


def stretched(samples: NDArray[Any], together: bool = True) -> NDArray[np.uint8]:
    """The documented rule, in the plainest way."""
    if samples.dtype == np.uint8:
        return samples
    whole = samples.astype(np.float64)
    result = np.zeros(samples.shape, np.uint8)
    groups = [[*range(samples.shape[2])]] if together else [[n] for n in range(samples.shape[2])]
    for group in groups:
        ordered = np.sort(whole[:, :, group].ravel())
        low = ordered[max(0, -(-len(ordered) // 100) - 1)]
        high = ordered[max(0, -(-len(ordered) * 99 // 100) - 1)]
        if low == high:
            low, high = ordered[0], ordered[-1]
        if low < high:
            unit = ((whole[:, :, group] - low) / (high - low)).clip(0, 1)
            result[:, :, group] = np.rint(unit * 255)
    return result


def as_rgb(samples: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return samples if samples.shape[2] == 3 else np.repeat(samples[:, :, :1], 3, axis=2)


# LZW and PackBits are written by libtiff, through Pillow, as bytes (see `recoded`).
CODECS = [None, "zlib", "lzma", "lzw", "packbits"]


def recoded(data: bytes, codec: int) -> bytes:
    """An uncompressed file of one strip or tile per page and plane with its bytes compressed."""
    tiff_codec = {5: "tiff_lzw", 32773: "packbits"}[codec]
    with tifffile.TiffFile(io.BytesIO(data)) as file:
        page = file.pages[0]
        order, big = file.byteorder, file.is_bigtiff
        offsets, sizes = page.tags[page_tag(page, 0)], page.tags[page_tag(page, 1)]
        places = [(tag.valueoffset, tag.dtype) for tag in (offsets, sizes)]
        pieces = list(zip(page.dataoffsets, page.databytecounts, strict=True))
        compression = page.tags[259].valueoffset
    out = bytearray(data)
    out[compression : compression + 2] = codec.to_bytes(2, "little" if order == "<" else "big")
    for index, (at, size) in enumerate(pieces):
        row = np.frombuffer(data, np.uint8, size, at).reshape(1, -1)
        buffer = io.BytesIO()
        Image.fromarray(row).save(buffer, "TIFF", compression=tiff_codec, strip_size=2**24)
        buffer.seek(0)
        with tifffile.TiffFile(buffer) as one:
            first = one.pages[0]
            begin, length = first.dataoffsets[0], first.databytecounts[0]
            assert len(first.dataoffsets) == 1
        piece = buffer.getvalue()[begin : begin + length]
        for (where, kind), value in zip(places, (len(out), len(piece)), strict=True):
            width = {3: 2, 4: 4, 16: 8}[int(kind)]
            spot = where + index * width
            out[spot : spot + width] = value.to_bytes(width, "little" if order == "<" else "big")
        out += piece
    assert not big or order in "<>"
    return bytes(out)


def page_tag(page: Any, which: int) -> int:
    return ((324, 325) if page.is_tiled else (273, 279))[which]


@settings(max_examples=150, deadline=None)
@given(
    dtype=st.sampled_from(DTYPES),
    channels=st.integers(1, 6),
    planar=st.booleans(),
    order=st.sampled_from("<>"),
    codec=st.sampled_from(CODECS),
    predictor=st.booleans(),
    tile=st.sampled_from([None, (16, 16), (32, 16)]),
    strip_rows=st.integers(1, 40),
    pages=st.integers(1, 3),
    page=st.integers(0, 2),
    big=st.booleans(),
    together=st.booleans(),
    size=st.tuples(st.integers(1, 40), st.integers(1, 40)),
)
def test_each_file_becomes_its_picture(
    dtype: str,
    channels: int,
    planar: bool,
    order: str,
    codec: str | None,
    predictor: bool,
    tile: tuple[int, int] | None,
    strip_rows: int,
    pages: int,
    page: int,
    big: bool,
    together: bool,
    size: tuple[int, int],
) -> None:
    page = min(page, pages - 1)
    samples = [scene(*size, channels, dtype) // (n + 1) for n in range(pages)]
    written_codec = codec if codec in ("zlib", "lzma") else None
    if codec in ("lzw", "packbits"):
        pages, page, tile, strip_rows = 1, 0, None, size[0]
    options: dict[str, Any] = {"compression": written_codec, "tile": tile}
    if channels > 1:
        options["planarconfig"] = "separate" if planar else "contig"
    if predictor and written_codec == "zlib" and dtype[0] != "f":
        options["predictor"] = True
    if tile is None:
        options["rowsperstrip"] = min(strip_rows, size[0])
    buffer = io.BytesIO()
    with tifffile.TiffWriter(buffer, byteorder=order, bigtiff=big) as file:
        for one in samples[:pages]:
            stored = one[:, :, 0] if channels == 1 else one
            stored = stored.transpose(2, 0, 1) if planar and channels > 1 else stored
            stored = np.ascontiguousarray(stored.astype(np.dtype(order + dtype)))
            file.write(stored, photometric="minisblack", metadata=None, **options)
    data = buffer.getvalue()
    if codec in ("lzw", "packbits"):
        data = recoded(data, 5 if codec == "lzw" else 32773)
    found = read(data, page=page or None, scaling="image" if together else "channel")
    used = samples[page][:, :, :3] if channels >= 3 else samples[page][:, :, :1]
    expected = as_rgb(stretched(used, together))
    assert np.abs(found.pixels.astype(int) - expected).max() <= 1
    info = found.info
    assert info is not None
    assert (info.pages, info.page, info.channels) == (pages, page, channels)
    assert (info.bit_depth, info.dtype) == (used.dtype.itemsize * 8, used.dtype.name)
    codes = {warning.code for warning in found.warnings} - {"blank_image"}
    assert codes == ({"more_pages"} if pages > 1 and page == 0 else set()) | (
        {"more_channels"} if channels not in (1, 3) else set()
    )


@pytest.mark.parametrize("predictor", [2, 3])
@pytest.mark.parametrize("compression", ["tiff_lzw", "tiff_adobe_deflate", "zstd"])
def test_predictors_of_floats_as_libtiff_writes_them(predictor: int, compression: str) -> None:
    values = scene(20, 30, 1, "f4")[:, :, 0] / 7
    buffer = io.BytesIO()
    options: dict[str, Any] = {"compression": compression, "tiffinfo": {317: predictor}}
    Image.fromarray(values).save(buffer, "TIFF", **options)
    buffer.seek(0)
    with tifffile.TiffFile(buffer) as file:
        assert file.pages[0].tags[317].value == predictor
    assert (read(buffer.getvalue()).pixels == as_rgb(stretched(values[:, :, None]))).all()


@pytest.mark.parametrize("dtype", ["u1", "u2", "f4"])
@pytest.mark.parametrize("alpha", ["unassalpha", "assocalpha"])
@pytest.mark.parametrize("colours", [1, 3])
def test_alpha_is_laid_on_white(dtype: str, alpha: str, colours: int) -> None:
    own = scene(20, 30, colours, dtype)
    most = 1.0 if dtype == "f4" else float(np.iinfo(dtype).max)
    cover = np.zeros((20, 30), np.float64)
    cover[:, 10:20], cover[:, 20:] = 0.5, 1.0
    stored = own * cover[..., None] if alpha == "assocalpha" else own
    whole = np.concatenate([stored, (cover * most)[..., None]], -1).astype(dtype)
    kind = "rgb" if colours == 3 else "minisblack"
    found = read(written(whole, photometric=kind, extrasamples=[alpha]))
    inside = stretched(own[:, 10:]) if dtype != "u1" else own[:, 10:]
    assert (found.pixels[:, :10] == 255).all()
    expected = as_rgb(inside)
    assert np.abs(found.pixels[:, 20:].astype(int) - expected[:, 10:]).max() <= 3
    half = (expected[:, :10].astype(int) + 255) / 2
    assert np.abs(found.pixels[:, 10:20] - half).max() <= 4
    assert [w.code for w in found.warnings] == []


def test_a_chosen_channel_and_three_of_them() -> None:
    samples = scene(20, 30, 5, "u2")
    data = written(samples, planarconfig="contig")
    one = read(data, channel=(3,))
    assert (one.pixels == as_rgb(stretched(samples[:, :, 3:4]))).all()
    assert one.info is not None
    assert one.info.channel == (3,)
    assert one.warnings == ()
    three = read(data, channel=(4, 0, 2))
    assert (three.pixels == stretched(samples[:, :, [4, 0, 2]])).all()
    for wrong in ({"channel": (5,)}, {"page": 1}):
        with pytest.raises(InvalidRequest, match=r"5 channels|no page 1") as caught:
            read(data, **wrong)
        assert caught.value.field == next(iter(wrong))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("dtype", ["u1", "u2"])
def test_orientation(orientation: int, dtype: str) -> None:
    upright = scene(20, 30, 3, dtype)
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.transpose(1, 0, 2),
        6: upright.transpose(1, 0, 2)[::-1],
        7: upright.transpose(1, 0, 2)[::-1, ::-1],
        8: upright.transpose(1, 0, 2)[:, ::-1],
    }[orientation]
    data = written(
        np.ascontiguousarray(stored), photometric="rgb", extratags=[(274, 3, 1, orientation, True)]
    )
    assert (read(data).pixels == stretched(upright)).all()


def test_thumbnails_overviews_and_masks_are_no_pages() -> None:
    whole = scene(40, 60, 3, "u1")
    buffer = io.BytesIO()
    with tifffile.TiffWriter(buffer) as file:
        file.write(whole[::4, ::4], photometric="rgb", subfiletype=1)
        file.write(whole, photometric="rgb")
        file.write(whole[::2, ::2], photometric="rgb", subfiletype=1)
        file.write(whole[..., 0] > 0, photometric="mask", subfiletype=4)
    found = read(buffer.getvalue())
    assert (found.pixels == whole).all()
    assert found.warnings == ()
    # All that is left is below the thumbnail.
    buffer = io.BytesIO()
    with tifffile.TiffWriter(buffer) as file:
        file.write(whole[::4, ::4], photometric="rgb", subfiletype=1, subifds=1)
        file.write(whole, photometric="rgb")
    assert (read(buffer.getvalue()).pixels == whole).all()


def disc(height: int = 200, width: int = 300) -> NDArray[np.float64]:
    y, x = np.mgrid[:height, :width]
    noise = np.random.default_rng(0).normal(0, 6, (height, width))
    return np.where(np.hypot(x - 210, y - 120) < 45, 190, 80) + noise


@pytest.mark.parametrize("fill", [-9999, -32768, -3.4028234663852886e38, 1e20, np.nan, 9999])
@pytest.mark.parametrize("share", [0.005, 0.22, 0.7])
@pytest.mark.parametrize("marked", [False, True])
def test_what_was_not_measured_does_not_take_the_stretch(
    fill: float, share: float, marked: bool
) -> None:
    values = disc().astype(np.float32)
    rows = round(len(values) * share)
    expected = stretched(values[rows:, :, None])
    values[:rows] = fill
    tag = [(42113, "s", 0, f"{fill:.17g}", True)] if marked else []
    found = read(written(values, extratags=tag)).pixels[..., 0]
    assert (found[:rows] == 0).all()
    assert np.abs(found[rows:].astype(int) - expected[..., 0]).max() <= 2


@pytest.mark.parametrize("nodata", [0, 255, 7, 65_535])
def test_a_marked_value_is_left_out_wherever_it_lies(nodata: int) -> None:
    values = (disc() * 20).astype(np.uint16)
    expected = stretched(values[60:, :, None])
    values[:60] = nodata
    data = written(values, extratags=[(42113, "s", 0, str(nodata), True)])
    found = read(data).pixels[..., 0]
    assert (found[:60] == 0).all()
    assert np.abs(found[60:].astype(int) - expected[..., 0]).max() <= 2


@pytest.mark.parametrize("depth", [10, 12, 16])
def test_saturated_rows_do_not_take_the_stretch(depth: int) -> None:
    values = disc().astype(np.uint16)
    expected = stretched(values[20:, :, None])
    values[:20] = 2**depth - 1
    found = read(written(values)).pixels[..., 0]
    assert (found[:20] == 255).all()
    assert np.abs(found[20:].astype(int) - expected[..., 0]).max() <= 1


def test_dark_backgrounds_bilevel_and_sparse_images_stay_what_they_are() -> None:
    background = np.zeros((100, 100), np.uint16)
    background[20:60, 30:70] = np.random.default_rng(1).integers(5_000, 9_000, (40, 40))
    found = read(written(background)).pixels[..., 0]
    assert found[20:60, 30:70].min() > 100
    bilevel = np.where(disc() > 130, 60_000, 0).astype(np.uint16)
    assert set(np.unique(read(written(bilevel)).pixels)) == {0, 255}


@pytest.mark.parametrize("scale", [1, 4, 16, 257])
@pytest.mark.parametrize("planar", [False, True])
def test_colours_of_any_depth_are_one_picture(scale: int, planar: bool) -> None:
    rgb = np.stack([disc(), 255 - disc(), disc() / 2], -1).clip(0, 255).astype(np.uint16)
    stored = rgb * scale
    stored = np.ascontiguousarray(stored.transpose(2, 0, 1)) if planar else stored
    data = written(stored, photometric="rgb", planarconfig="separate" if planar else "contig")
    assert (read(data).pixels == stretched(rgb)).all()


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA"])
def test_deep_png_keeps_its_lower_bytes(mode: str) -> None:
    channels = len(mode)
    values = (scene(20, 30, channels, "f8") * 8).astype(np.uint16)
    if mode != "RGB":
        values[:, :, -1] = 65_535
    found = read(png_of(values, {"RGB": 2, "RGBA": 6, "LA": 4}[mode]))
    colours = values[:, :, : channels - (mode != "RGB")]
    assert (found.pixels == as_rgb(stretched(colours))).all()
    assert found.info is not None
    assert (found.info.bit_depth, found.info.scaling) == (16, "image")


def png_of(values: NDArray[np.uint16], colour: int) -> bytes:
    def chunk(kind: bytes, content: bytes) -> bytes:
        body = kind + content
        return struct.pack(">I", len(content)) + body + struct.pack(">I", zlib.crc32(body))

    height, width = values.shape[:2]
    # The filter "up", so that the reader has something to undo.
    raw = values.astype(">u2").tobytes()
    rows = np.frombuffer(raw, np.uint8).reshape(height, -1)
    steps = np.diff(rows, axis=0, prepend=np.zeros((1, rows.shape[1]), np.uint8))
    lines = b"".join(b"\2" + row.tobytes() for row in steps.astype(np.uint8))
    header = struct.pack(">IIBBBBB", width, height, 16, colour, 0, 0, 0)
    parts = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(lines)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + parts


def test_pixel_size() -> None:
    values = scene(20, 30, 1, "u2")[:, :, 0]
    data = written(values, resolution=(2.0, 4.0), resolutionunit="CENTIMETER")
    info = read(data).info
    assert info is not None
    assert info.pixel_size is not None
    assert (info.pixel_size.x, info.pixel_size.y, info.pixel_size.unit) == (5_000, 2_500, "um")
    buffer = io.BytesIO()
    with tifffile.TiffWriter(buffer, imagej=True) as file:
        file.write(values, resolution=(10, 10), metadata={"unit": "um"})
    info = read(buffer.getvalue()).info
    assert info is not None
    assert info.pixel_size is not None
    assert (info.pixel_size.x, info.pixel_size.unit) == (0.1, "um")
    buffer = io.BytesIO()
    with tifffile.TiffWriter(buffer, ome=True) as file:
        file.write(values, metadata={"PhysicalSizeX": 0.65, "PhysicalSizeY": 0.65})
    info = read(buffer.getvalue()).info
    assert info is not None
    assert info.pixel_size is not None
    assert (info.pixel_size.x, info.pixel_size.unit) == (0.65, "um")
    assert read(written(values)).info.pixel_size is None  # type: ignore[union-attr]


@pytest.mark.parametrize("dtype", ["u1", "u2"])
@pytest.mark.parametrize("planar", [False, True])
def test_cmyk(dtype: str, planar: bool) -> None:
    inks = np.zeros((20, 30, 4), np.uint8)
    inks[:, 15:] = (0, 255, 255, 0)
    stored = inks.astype(dtype) * (257 if dtype == "u2" else 1)
    stored = np.ascontiguousarray(stored.transpose(2, 0, 1)) if planar else stored
    config = "separate" if planar else "contig"
    found = read(written(stored, photometric="separated", planarconfig=config)).pixels
    assert (found[:, :15] == 255).all()
    assert np.abs(found[:, 15:].astype(int) - (254, 0, 0)).max() <= 2


def with_tag(data: bytes, tag: int, value: int) -> bytes:
    """A little-endian file with another value of a SHORT tag of its first page."""
    with tifffile.TiffFile(io.BytesIO(data)) as file:
        at = file.pages[0].tags[tag].valueoffset
    return data[:at] + value.to_bytes(2, "little") + data[at + 2 :]


@pytest.mark.parametrize(
    ("tag", "value", "words"),
    [
        (259, 50_001, "WebP inside TIFF"),
        (259, 34_712, "JPEG 2000 inside TIFF"),
        (259, 50_002, "JPEG XL inside TIFF"),
        (259, 34_887, "LERC inside TIFF"),
        (262, 32_803, "raw camera data"),
        (262, 3, "palette uint16 TIFF with 3 channels"),
        (339, 6, "complex16 TIFF"),
        (258, 12, "12"),
    ],
)
def test_what_is_not_read_is_named(tag: int, value: int, words: str) -> None:
    data = written(scene(20, 30, 3, "u2"), photometric="rgb", compression=None)
    if tag == 339:
        data = written(scene(20, 30, 1, "i2")[:, :, 0])
    if tag == 258:
        data = written(scene(20, 30, 1, "u2")[:, :, 0])
    with pytest.raises(InvalidImage, match=words):
        decode_image(with_tag(data, tag, value), LIMITS)


@pytest.mark.parametrize("codec", [None, "zlib"])
def test_truncated_deep_files_are_refused(codec: str | None) -> None:
    noise = np.random.default_rng(0).integers(0, 65_535, (60, 60, 3), np.uint16)
    data = written(noise, photometric="rgb", compression=codec)
    for share in (0.3, 0.6, 0.95):
        with pytest.raises(InvalidImage):
            decode_image(data[: int(len(data) * share)], LIMITS)


def test_limits_count_bytes_of_samples_too() -> None:
    data = written(scene(20, 30, 5, "f8"), planarconfig="contig")
    with pytest.raises(ImageTooLarge, match="float64 TIFF with 5 channels"):
        decode_image(data, Limits(max_image_pixels=600))
    assert tiff.BYTES_PER_PIXEL * 600 < 20 * 30 * 5 * 8
    with pytest.raises(ImageTooLarge, match="30 x 20"):
        decode_image(data, Limits(max_image_pixels=599))


def test_libtiff_is_silent(capfd: pytest.CaptureFixture[str]) -> None:
    tiff.silence_libtiff()
    noise = np.random.default_rng(0).integers(0, 255, (60, 60), np.uint8)
    data = bytearray(written(noise.astype(np.uint16), compression="zlib"))
    data[-3_000:-2_000] = b"\xff" * 1_000
    with pytest.raises(InvalidImage):
        decode_image(bytes(data), LIMITS)
    assert capfd.readouterr() == ("", "")


def test_an_imagej_stack_with_one_directory() -> None:
    stack = np.stack([scene(20, 30, 1, "u2")[:, :, 0] // (n + 1) for n in range(4)])
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, stack, imagej=True, truncate=True, metadata={"axes": "ZYX"})
    for page in range(4):
        found = read(buffer.getvalue(), page=page)
        assert found.info is not None
        assert found.info.pages == 4
        assert (found.pixels == as_rgb(stretched(stack[page][:, :, None]))).all()


def test_an_uncompressed_file_without_sizes_of_its_strips() -> None:
    values = scene(20, 30, 3, "u2")
    data = written(values, photometric="rgb")
    with tifffile.TiffFile(io.BytesIO(data)) as file:
        tag = file.pages[0].tags[279]
        size = {3: 2, 4: 4}[int(tag.dtype)]
        data = data[: tag.valueoffset] + bytes(size) + data[tag.valueoffset + size :]
    assert (read(data).pixels == stretched(values)).all()


def test_a_transparent_colour_of_a_deep_png() -> None:
    values = scene(20, 30, 3, "u2") * 100
    values[:5] = (7, 8, 9)
    data = png_of(values, 2)
    body = b"tRNS" + struct.pack(">HHH", 7, 8, 9)
    key = struct.pack(">I", 6) + body + struct.pack(">I", zlib.crc32(body))
    found = read(data[:33] + key + data[33:])
    assert (found.pixels[:5] == 255).all()
    assert np.abs(found.pixels[5:].astype(int) - stretched(values[5:])).max() <= 1


COLOUR_MAP = np.random.default_rng(3).integers(0, 65_536, (3, 256), np.uint16)


def imagej_palettes(planes: NDArray[np.uint8], order: str = "<") -> bytes:
    """An ImageJ stack with a look-up table: one directory, of the first plane."""
    buffer = io.BytesIO()
    count = len(planes)
    description = f"ImageJ=1.53t\nimages={count}\nslices={count}\nloop=false\n"
    tifffile.imwrite(
        buffer,
        planes[0],
        photometric="palette",
        colormap=COLOUR_MAP,
        description=description,
        metadata=None,
        byteorder=order,
    )
    with tifffile.TiffFile(io.BytesIO(buffer.getvalue())) as file:
        page = file.pages[0]
        assert len(page.dataoffsets) == 1
        at, offset = page.dataoffsets[0], page.tags[273].valueoffset
    data = bytearray(buffer.getvalue() + planes.tobytes())
    assert at + planes[0].size == len(buffer.getvalue())
    struct.pack_into(order + "I", data, offset, len(buffer.getvalue()))
    return bytes(data)


@pytest.mark.parametrize("order", "<>")
def test_each_plane_of_a_palette_stack(order: str) -> None:
    planes = np.random.default_rng(4).integers(0, 256, (3, 20, 30), np.uint8)
    data = imagej_palettes(planes, order)
    for page in range(3):
        found = read(data, page=page)
        assert found.info is not None
        assert found.info.pages == 3
        assert (found.pixels == (COLOUR_MAP.T >> 8).astype(np.uint8)[planes[page]]).all()
    assert [w.code for w in read(data).warnings] == ["more_pages"]


@pytest.mark.parametrize(("tag", "value"), [(262, 4), (258, 4), (259, 2)])
def test_a_stack_that_pillow_would_read_is_one_page(tag: int, value: int) -> None:
    """Pillow knows the first plane alone."""
    data = imagej_palettes(np.zeros((3, 20, 30), np.uint8))
    assert len(pages_of(data)) == 3
    assert len(pages_of(with_tag(data, tag, value))) == 1


@pytest.mark.parametrize("big", [False, True])
@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("codec", [None, "zlib"])
@pytest.mark.parametrize("predictor", [False, True])
def test_palettes(big: bool, order: str, codec: str | None, predictor: bool) -> None:
    indexes = np.random.default_rng(5).integers(0, 256, (20, 30), np.uint8)
    buffer = io.BytesIO()
    options = {"predictor": True} if predictor and codec else {}
    with tifffile.TiffWriter(buffer, byteorder=order, bigtiff=big) as file:
        file.write(
            indexes, photometric="palette", colormap=COLOUR_MAP, compression=codec, **options
        )
    found = read(buffer.getvalue())
    assert (found.pixels == (COLOUR_MAP.T >> 8).astype(np.uint8)[indexes]).all()
    data = bytearray(buffer.getvalue())
    at = data.index(struct.pack(order + "HH", 320, 3))
    data[at : at + 2] = struct.pack(order + "H", 321)
    with pytest.raises(InvalidImage, match="palette of the TIFF file"):
        read(bytes(data))


@pytest.mark.parametrize("bits", [1, 4])
def test_a_file_that_pillow_takes_for_damaged_is_named(bits: int) -> None:
    values = np.zeros((20, 32), np.uint8)
    data = bytearray(written(values, bigtiff=True, byteorder=">"))
    with tifffile.TiffFile(io.BytesIO(bytes(data))) as file:
        at = file.pages[0].tags[258].valueoffset
    data[at : at + 2] = struct.pack(">H", bits)
    with pytest.raises(InvalidImage, match=r"big-endian BigTIFF.*is not read"):
        read(bytes(data))


@pytest.mark.parametrize("predictor", [2, 3, 7])
@pytest.mark.parametrize("codec", [1, 32773])
@pytest.mark.parametrize("dtype", ["u1", "u2", "f4"])
def test_data_without_a_predictor_stay_as_they_are(predictor: int, codec: int, dtype: str) -> None:
    """Of these codecs libtiff and others ignore the tag."""
    values = scene(20, 30, 1, dtype)
    data = written(values[:, :, 0], extratags=[(317, 3, 1, predictor, True)])
    data = data if codec == 1 else recoded(data, codec)
    assert (read(data).pixels == as_rgb(stretched(values))).all()


@pytest.mark.parametrize("fill", [np.nan, np.inf, -np.inf, -9_999])
def test_what_is_not_valid_is_black_in_negatives_too(fill: float) -> None:
    values = scene(20, 30, 1, "f4")[:, :, 0] + 1
    values[4:6] = fill
    tags = [(42113, "s", 0, "-9999", True)]
    usual, negative = (
        read(written(values, photometric=kind, extratags=tags)).pixels.astype(int)
        for kind in ("minisblack", "miniswhite")
    )
    assert (usual[4:6] == 0).all()
    assert (negative[4:6] == 0).all()
    valid = np.r_[0:4, 6:20]
    assert np.abs(usual[valid] + negative[valid] - 255).max() <= 1
    eight = scene(20, 30, 1, "u1")[:, :, 0]
    assert (read(written(eight, photometric="miniswhite")).pixels[..., 0] == 255 - eight).all()


@pytest.mark.parametrize("dtype", ["u1", "u2", "f4"])
@pytest.mark.parametrize("codec", [1, 8])
def test_bits_from_low_to_high(dtype: str, codec: int) -> None:
    values = scene(20, 30, 3, dtype)
    raw = values.tobytes() if codec == 1 else zlib.compress(values.tobytes())
    piece = bytes(int(f"{byte:08b}"[::-1], 2) for byte in raw)
    tags = {256: (30,), 257: (20,), 258: (8 * values.dtype.itemsize,), 259: (codec,), 262: (2,)}
    tags |= {266: (2,), 273: (-1,), 277: (3,), 278: (20,), 279: (len(piece),)}
    data = tiff_of({**tags, 339: (3 if dtype == "f4" else 1,)}, piece)
    assert (read(data).pixels == stretched(values)).all()


KINDS = [
    {256: (16,), 257: (16,), 258: (bits,), 259: (codec,), 262: (photometric,), 266: (fill,),
     273: (8,), 277: (channels,), 278: (16,), 279: (9,), 284: (planar,), 339: (kind,)}
    for photometric in (0, 1, 2, 3, 4, 5, 6, 8, 9)
    for bits in (1, 2, 4, 8, 12, 16, 24, 32)
    for channels in (1, 2, 3, 4, 5, 8)
    for codec in (1, 2, 5, 7, 8)
    for kind, planar, fill in ((1, 1, 1), (1, 2, 2), (2, 1, 1), (3, 2, 1))
]  # fmt: skip


def test_a_refusal_advises_what_the_file_is_not() -> None:
    """Every file of the kind that messages advise is read here."""
    refused = 0
    for tags in KINDS:
        (page,) = pages_of(tiff_of(tags))
        advised = page.photometric in (0, 1, 2) and page.bits[0] in (8, 16)
        advised &= page.sample_format in (1, 2) and page.codec in (1, 5, 8)
        if page.channels < page.colours:
            continue
        try:
            tiff.check(page, LIMITS)
        except InvalidImage:
            refused += 1
            assert not advised, tags
        else:
            assert not advised or page.bytewise
    assert refused > 1_000


def test_a_picture_that_is_all_transparent_is_blank() -> None:
    for dtype in ("u1", "u2"):
        values = scene(20, 30, 4, dtype)
        values[..., 3] = 0
        data = written(values, photometric="rgb", extrasamples=["unassalpha"])
        found = read(data)
        assert (found.pixels == 255).all()
        assert [w.code for w in found.warnings] == ["blank_image"]


@pytest.mark.parametrize("colour", [(9, 9, 9), (255, 0, 7)])
def test_a_picture_of_one_colour_is_blank(colour: tuple[int, int, int]) -> None:
    data = written(np.full((5, 6, 3), colour, np.uint8), photometric="rgb")
    assert [w.code for w in read(data).warnings] == ["blank_image"]


def test_the_first_page_when_named_is_no_guess() -> None:
    planes = np.random.default_rng(4).integers(0, 256, (3, 20, 30), np.uint8)
    assert [w.code for w in read(written(planes)).warnings] == ["more_pages"]
    assert read(written(planes), page=0).warnings == ()


def test_libraries_log_nothing_in_the_service() -> None:
    code = (
        "import logging, sys; logging.basicConfig(); data = sys.stdin.buffer.read()\n"
        "from serve_app.images.decode import *; silence_decoders()\n"
        "try: read_image(data, Limits())\n"
        "except InvalidImage: print('refused')"
    )
    # More samples than bits: Pillow logs an error.
    data = tiff_of({256: (4,), 257: (4,), 258: (8,), 259: (7,), 262: (6,), 273: (8,), 277: (99,),
                    278: (4,), 279: (16,)})  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", code], input=data, capture_output=True, check=True, timeout=120
    )
    assert (done.stdout, done.stderr) == (b"refused\n", b"")
