"""Opening images: named by content, decoded when needed, kept for later."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import tifffile
from PIL import Image

from serve_app.cache.shared import add_checksum
from serve_app.core.errors import ImageTooLarge, InvalidImage, UnknownImage
from serve_app.core.limits import Limits
from serve_app.core.request import ImageOptions, Reading, image_id
from serve_app.core.types import RgbArray
from serve_app.images import store as images
from serve_app.images.decode import Decoded
from serve_app.images.store import ImageStore

PIXELS = np.random.default_rng(0).integers(0, 255, (20, 30, 3), dtype=np.uint8)
MEGABYTE = 2**20


def _png(pixels: RgbArray = PIXELS) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG")
    return buffer.getvalue()


class Shared:
    def __init__(self) -> None:
        self.kept: dict[str, bytes] = {}
        self.takes = True

    async def get(self, key: str) -> bytes | None:
        return self.kept.get(key)

    def put(self, key: str, value: Callable[[], bytes], nbytes: int) -> bool:
        if self.takes:
            self.kept[key] = value()
        return self.takes


@pytest.fixture
def decodings(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """The files decoded during a test."""
    seen: list[bytes] = []
    original = images.read_image

    def counted(data: bytes, limits: Limits, reading: Reading) -> Decoded:
        seen.append(data)
        return original(data, limits, reading)

    monkeypatch.setattr(images, "read_image", counted)
    return seen


async def test_a_file_and_its_pixels_have_one_name() -> None:
    store = ImageStore(Limits(), MEGABYTE)
    by_file, by_array = await store.open(_png()), await store.open(PIXELS)
    assert by_file.id == by_array.id == image_id(PIXELS)
    assert (by_file.width, by_file.height) == (30, 20)
    np.testing.assert_array_equal(await by_file.pixels(), PIXELS)


async def test_a_file_seen_before_is_not_decoded_again(decodings: list[bytes]) -> None:
    store = ImageStore(Limits(), MEGABYTE)
    first = await store.open(_png())
    second = await store.open(_png())
    assert (second.id, first.new, second.new, len(decodings)) == (first.id, True, False, 1)
    np.testing.assert_array_equal(await second.pixels(), PIXELS)
    await second.pixels()
    assert len(decodings) == 2  # once for all who ask within a request


async def test_a_known_id_opens_without_pixels_and_gets_them_when_asked(
    decodings: list[bytes],
) -> None:
    store = ImageStore(Limits(), MEGABYTE)
    name = (await store.open(_png())).id
    opened = await store.open(name)
    assert (opened.id, opened.width, opened.height, opened.new) == (name, 30, 20, False)
    assert len(decodings) == 1
    np.testing.assert_array_equal(await opened.pixels(), PIXELS)


async def test_an_array_is_kept_by_value() -> None:
    store = ImageStore(Limits(), MEGABYTE)
    mine = PIXELS.copy()
    opened = await store.open(mine)
    mine[:] = 0
    np.testing.assert_array_equal(await opened.pixels(), PIXELS)
    later = await (await store.open(opened.id)).pixels()
    np.testing.assert_array_equal(later, PIXELS)
    assert not later.flags.writeable


async def test_unknown_and_malformed_ids() -> None:
    store = ImageStore(Limits(), MEGABYTE)
    missing = await store.open(image_id(PIXELS))
    with pytest.raises(UnknownImage) as caught:
        await missing.pixels()
    assert caught.value.field == "image_id"
    for bad in ("", "1x1", "0x5-" + "a" * 64, image_id(PIXELS) + "\n", image_id(PIXELS).upper()):
        with pytest.raises(UnknownImage):
            await store.open(bad)


async def test_the_oldest_file_is_forgotten_at_the_bound() -> None:
    files = [_png(PIXELS + np.uint8(i)) for i in range(3)]
    store = ImageStore(Limits(), sum(len(f) for f in files[1:]) + 10)
    names = [(await store.open(data)).id for data in files]
    with pytest.raises(UnknownImage):
        await (await store.open(names[0])).pixels()
    for name in names[1:]:
        await (await store.open(name)).pixels()


async def test_a_forgotten_file_sent_again_is_kept_again(decodings: list[bytes]) -> None:
    small, other = _png(), _png(PIXELS + np.uint8(1))
    store = ImageStore(Limits(), max(len(small), len(other)))
    name = (await store.open(small)).id
    await store.open(other)
    assert not (await store.open(small)).new  # its name is known still
    assert len(decodings) == 2
    np.testing.assert_array_equal(await (await store.open(name)).pixels(), PIXELS)


async def test_a_known_file_that_is_not_kept_is_read_from_the_request() -> None:
    store = ImageStore(Limits(), max_bytes=0)
    await store.open(_png())
    again = await store.open(_png())
    assert not again.new
    np.testing.assert_array_equal(await again.pixels(), PIXELS)


async def test_bad_images_are_refused_and_leave_nothing() -> None:
    store = ImageStore(Limits(max_image_side=25), MEGABYTE)
    for bad, error in (
        (b"", InvalidImage),
        (b"not an image", InvalidImage),
        (_png()[:-30], ImageTooLarge),
        (PIXELS, ImageTooLarge),
        (PIXELS.astype(np.float32), InvalidImage),
        (np.zeros((0, 5, 3), np.uint8), InvalidImage),
        (np.zeros((5, 5, 2), np.uint8), InvalidImage),
    ):
        with pytest.raises(error):
            await store.open(bad)  # type: ignore[arg-type]
    with pytest.raises(UnknownImage):
        await (await store.open(image_id(PIXELS))).pixels()


async def test_another_ingress_finds_the_file_in_the_shared_tier() -> None:
    shared = Shared()
    name = (await ImageStore(Limits(), MEGABYTE, shared).open(_png())).id
    elsewhere = ImageStore(Limits(), MEGABYTE, shared)
    np.testing.assert_array_equal(await (await elsewhere.open(name)).pixels(), PIXELS)


async def test_a_shared_tier_cannot_pass_off_another_picture() -> None:
    shared = Shared()
    store = ImageStore(Limits(), 0, shared)
    name = (await store.open(_png())).id
    (key,) = shared.kept
    shared.kept[key] = _png(255 - PIXELS)
    with pytest.raises(UnknownImage):
        await (await store.open(name)).pixels()


async def test_a_crop_is_an_image_of_its_own() -> None:
    opened = await ImageStore(Limits(), MEGABYTE).open(_png())
    part = await opened.crop(3, 5, 10, 8)
    assert (part.width, part.height) == (10, 8)
    np.testing.assert_array_equal(await part.pixels(), PIXELS[5:13, 3:13])
    assert part.id == image_id(np.ascontiguousarray(PIXELS[5:13, 3:13]))


@pytest.mark.parametrize(("more", "threads"), [(b"", 0), (bytes(2**20), 1)])
async def test_a_file_sent_again_costs_one_hash_and_a_thread_only_if_it_is_large(
    monkeypatch: pytest.MonkeyPatch, decodings: list[bytes], more: bytes, threads: int
) -> None:
    store = ImageStore(Limits(), 8 * MEGABYTE)
    file = _png() + more  # what follows a PNG's end is not looked at
    first = await store.open(file)
    decodings.clear()
    calls: list[object] = []
    original = images.asyncio.to_thread

    async def counted(function: Any, *args: Any) -> Any:
        calls.append(function)
        return await original(function, *args)

    monkeypatch.setattr(images.asyncio, "to_thread", counted)
    monkeypatch.setattr(images, "image_id", None)
    again = await store.open(file)
    assert (again.id, again.new, decodings, len(calls)) == (first.id, False, [], threads)


@pytest.mark.parametrize("lost", ["never taken", "taken and lost"])
async def test_a_file_sent_again_is_found_by_others_whatever_became_of_it(lost: str) -> None:
    """What an `unknown_image` asks the client for must help, through whichever ingress."""
    shared, now = Shared(), 0.0
    shared.takes = lost == "taken and lost"
    here = ImageStore(Limits(), MEGABYTE, shared, lambda: now)
    there = ImageStore(Limits(), MEGABYTE, shared)
    name = (await here.open(_png())).id
    shared.kept.clear()
    shared.takes = True
    with pytest.raises(UnknownImage):
        await (await there.open(name)).pixels()
    now += images._SHARE_AGAIN_S
    await here.open(_png())
    np.testing.assert_array_equal(await (await there.open(name)).pixels(), PIXELS)


async def test_a_file_that_comes_often_is_not_written_each_time() -> None:
    shared, now = Shared(), 0.0
    store = ImageStore(Limits(), MEGABYTE, shared, lambda: now)
    await store.open(_png())
    shared.kept.clear()
    await store.open(_png())
    assert not shared.kept


def _stack() -> bytes:
    """Three pages, of 16 bits and two channels, each another picture."""
    y, x = np.mgrid[:20, :30]
    pages = [np.stack([x * (n + 1) + y, y * y + n * x], -1).astype(np.uint16) for n in range(3)]
    buffer = io.BytesIO()
    with tifffile.TiffWriter(buffer) as file:
        for page in pages:
            file.write(page, photometric="minisblack", planarconfig="contig")
    return buffer.getvalue()


async def test_a_file_read_differently_is_another_image(decodings: list[bytes]) -> None:
    store, file = ImageStore(Limits(), MEGABYTE), _stack()
    first = await store.open(file)
    second = await store.open(file, ImageOptions(page=1))
    third = await store.open(file, ImageOptions(channel=1))
    assert len({first.id, second.id, third.id}) == len(decodings) == 3
    assert (await store.open(file, ImageOptions(page=1))).id == second.id
    assert (await store.open(file, ImageOptions(page=0, scaling="image"))).id == first.id
    assert len(decodings) == 3
    # Their pixels are read again as they were read first.
    for name in (first.id, second.id, third.id):
        assert image_id(await (await store.open(name)).pixels()) == name


async def test_what_was_found_is_told_of_a_known_file_too() -> None:
    store, file = ImageStore(Limits(), MEGABYTE), _stack()
    for new in (True, False):
        opened = await store.open(file)
        assert opened.new == new
        assert {w.code for w in opened.warnings} == {"more_pages", "more_channels"}
        assert opened.info is not None
        assert (opened.info.pages, opened.info.channels, opened.info.bit_depth) == (3, 2, 16)
    assert (await store.open(opened.id)).warnings == ()
    plain = await store.open(_png())
    assert (plain.info, plain.warnings) == (None, ())


async def test_the_shared_tier_keeps_how_a_file_was_read() -> None:
    shared = Shared()
    writer, reader = (ImageStore(Limits(), MEGABYTE, shared) for _ in range(2))  # type: ignore[arg-type]
    opened = await writer.open(_stack(), ImageOptions(page=2, channel=[1], scaling="channel"))
    pixels = await (await reader.open(opened.id)).pixels()
    np.testing.assert_array_equal(pixels, await opened.pixels())
    key = f"img-{opened.id}"
    for head in (b"read:[", b"read:[9, [0], 1]\n", b"read:{}\n", b"read:"):
        shared.kept[key] = add_checksum(key, head + _stack())
        with pytest.raises(UnknownImage):
            await (await ImageStore(Limits(), MEGABYTE, shared).open(opened.id)).pixels()  # type: ignore[arg-type]
