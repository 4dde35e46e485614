"""What a TIFF file may cost: decompressed bytes, pieces, and bytes that are read again."""

from __future__ import annotations

import struct
import zlib
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from serve_app.core.errors import ImageTooLarge, InvalidImage
from serve_app.core.limits import Limits
from serve_app.images import tiff_samples
from serve_app.images.decode import decode_image
from serve_app.images.tiff_directory import _KINDS, _RATIONALS, Directory, _Entry
from tests.hostile.images import tiff_of

LIMITS = Limits(max_image_pixels=4_000, max_image_side=300)
FREE = 4_096


def shared_pieces(
    width: int, height: int, across: int, down: int, channels: int, bits: int, planar: bool
) -> bytes:
    """A deflated file of which all tiles are the same few bytes."""
    each = 1 if planar else channels
    packed = zlib.compress(bytes(across * down * each * bits // 8), 9)
    count = -(-width // across) * -(-height // down) * (channels if planar else 1)
    tags = {256: (width,), 257: (height,), 258: (bits,), 259: (8,), 262: (1,), 277: (channels,)}
    tags |= {284: (2 if planar else 1,), 322: (across,), 323: (down,)}
    return tiff_of({**tags, 324: (-1,) * count, 325: (len(packed),) * count}, packed)


@settings(max_examples=150, deadline=None)
@given(
    size=st.tuples(st.integers(1, 80), st.integers(1, 80)),
    tile=st.tuples(st.integers(1, 300), st.integers(1, 60)),
    channels=st.integers(1, 40),
    bits=st.sampled_from([8, 16, 64]),
    planar=st.booleans(),
)
def test_decompressed_bytes_are_bounded_by_the_picture(
    size: tuple[int, int], tile: tuple[int, int], channels: int, bits: int, planar: bool
) -> None:
    decoded = 0
    original = tiff_samples._Grid._typed

    def counted(self: Any, raw: NDArray[np.uint8]) -> NDArray[Any]:
        nonlocal decoded
        decoded += raw.size
        return original(self, raw)

    data = shared_pieces(*size, *tile, channels, bits, planar)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiff_samples._Grid, "_typed", counted)
        patch.setattr(tiff_samples, "FREE_PADDING_BYTES", FREE)
        try:
            pixels = decode_image(data, LIMITS)
        except (ImageTooLarge, InvalidImage):
            assert decoded == 0
            return
    assert pixels.shape == (size[1], size[0], 3)
    own = size[0] * size[1] * channels * bits // 8
    assert decoded <= tiff_samples.MAX_PADDING * own + FREE


@pytest.mark.parametrize("photometric", [1, 3])
@pytest.mark.parametrize(("width", "fits"), [(250, True), (1, False)])
def test_pages_for_pillow_have_the_same_bound(
    photometric: int, width: int, fits: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tiff_samples, "FREE_PADDING_BYTES", FREE)
    packed = zlib.compress(bytes(128 * 16))
    tags = {256: (width,), 257: (64,), 258: (4,), 259: (8,), 262: (photometric,), 277: (1,)}
    tags |= {320: (0,) * 48, 322: (256,), 323: (16,), 324: (-1,) * 4, 325: (len(packed),) * 4}
    data = tiff_of(tags, packed)
    limits = Limits(max_image_pixels=16_000)
    if fits:
        assert decode_image(data, limits).shape == (64, width, 3)
    else:
        with pytest.raises(ImageTooLarge, match=r"have 16384 bytes.* its 1 x 64 pixels"):
            decode_image(data, limits)


def test_small_tiles_are_bounded_by_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiff_samples, "MAX_SMALL_TILES", 15)
    with pytest.raises(InvalidImage, match="too many strips or tiles"):
        decode_image(shared_pieces(16, 4, 4, 1, 1, 8, False), LIMITS)
    assert decode_image(shared_pieces(12, 4, 4, 1, 1, 8, False), LIMITS).shape == (4, 12, 3)


@pytest.mark.parametrize("codec", [1, 8])
@pytest.mark.parametrize("bits", [4, 8])
def test_overlapping_strips_are_refused_whoever_reads_them(codec: int, bits: int) -> None:
    n, content = 200, zlib.compress(bytes(8)) + bytes(2**15)
    tags = {256: (8,), 257: (n,), 258: (bits,), 259: (codec,), 262: (3,), 273: (-1,) * n}
    tags |= {277: (1,), 278: (1,), 279: (len(content),) * n, 320: (0,) * (3 * 2**bits)}
    with pytest.raises(InvalidImage, match="overlap"):
        decode_image(tiff_of(tags, content), Limits())


@pytest.mark.parametrize("tag", [273, 279, 324, 325])
@pytest.mark.parametrize("bits", [1, 8])
@pytest.mark.parametrize("kind", [9, 11])
def test_offsets_and_sizes_are_whole_numbers(tag: int, bits: int, kind: int) -> None:
    tags = {256: (16,), 257: (16,), 258: (bits,), 262: (1,), 277: (1,)}
    tags |= {322: (16,), 323: (16,)} if tag > 320 else {278: (16,)}
    places = (324, 325) if tag > 320 else (273, 279)
    tags = dict(sorted({**tags, places[0]: (-1,), places[1]: (256,)}.items()))
    data = bytearray(tiff_of(tags, bytes(256)))
    decode_image(bytes(data), Limits())
    at = 10 + 12 * list(tags).index(tag)
    data[at + 2 : at + 4] = struct.pack("<H", kind)
    data[at + 8 : at + 12] = struct.pack("<i", -9) if kind == 9 else struct.pack("<f", 256)
    with pytest.raises(InvalidImage, match="an offset or a size"):
        decode_image(bytes(data), Limits())


@given(
    kind=st.sampled_from(sorted(_KINDS)),
    order=st.sampled_from("<>"),
    raw=st.binary(min_size=16, max_size=64),
)
def test_places_are_what_the_tag_holds_or_nothing(kind: int, order: str, raw: bytes) -> None:
    dtype = np.dtype(order + _KINDS[kind])
    each = dtype.itemsize * (1 + (kind in _RATIONALS))
    count = len(raw) // each
    page = Directory(raw, order, False, 0, {273: _Entry(kind, count, 0, 0, 4)})
    held = np.frombuffer(raw, dtype, count)
    if kind in _RATIONALS or dtype.kind == "f" or held.min() < 0:
        with pytest.raises(InvalidImage, match="not a valid integer"):
            page.places(273)
    else:
        assert page.places(273) == held.tolist()


def test_a_strip_of_bytes_is_not_counted_as_pixels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pillow's bound is of pixels: 64 million in RGB, rows of no multiple of four bytes, were
    more than it allows."""
    pixels = np.arange(31 * 20 * 3).reshape(20, 31, 3).astype(np.uint8)
    packed = zlib.compress(pixels.tobytes())
    tags = {256: (31,), 257: (20,), 258: (8,), 259: (8,), 262: (2,), 273: (-1,), 277: (3,)}
    data = tiff_of({**tags, 278: (20,), 279: (len(packed),)}, packed)
    monkeypatch.setattr("PIL.Image.MAX_IMAGE_PIXELS", 200)
    monkeypatch.setattr(tiff_samples, "_BATCH_BYTES", 2 * 93)
    assert (decode_image(data, Limits()) == pixels).all()
    monkeypatch.setattr(tiff_samples, "_BATCH_BYTES", 1)
    monkeypatch.setattr("PIL.Image.MAX_IMAGE_PIXELS", 93)
    assert (decode_image(data, Limits()) == pixels).all()
