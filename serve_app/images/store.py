"""The image store: gives each image a content-addressed id; decodes only when pixels are needed."""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import NamedTuple

from cachetools import LRUCache, TTLCache

from serve_app.cache.shared import SharedTier, add_checksum, strip_checksum
from serve_app.core.errors import SamServeError, UnknownImage
from serve_app.core.limits import Limits
from serve_app.core.request import ImageOptions, Reading, image_id, parse_image_id
from serve_app.core.single_flight import SingleFlight
from serve_app.core.types import ImageInfo, ResponseWarning, RgbArray
from serve_app.images.decode import check_pixels, read_image
from serve_app.telemetry.metrics import CACHE_LOOKUPS

log = logging.getLogger(__name__)

_MAX_IDS = 65_536
_SHARE_AGAIN_S = 10.0
"""A file that is sent again is shared again after this: the shared tier may have lost it."""

_DECODERS = 4
_HASH_INLINE_BYTES = 2**20
"""Hashing this many bytes takes a millisecond, hardly more than the switch to a thread."""


class ImageRef:
    """A reference to an image of a request: id and size, and its pixels when needed.

    Attributes:
        id: the content-addressed id.
        width, height: size of the upright image in pixels.
        info, warnings: about the file that it came in.
        new: whether this request sent it for the first time, so no variant has it cached.
    """

    def __init__(
        self,
        store: ImageStore,
        id_: str,
        source: _Stored | None,
        new: bool = False,
        known: _Known | None = None,
    ) -> None:
        self._store = store
        self._source = source
        self.id = id_
        self.width, self.height = parse_image_id(id_)
        self.new = new
        self.info = None if known is None else known.info
        self.warnings = () if known is None else known.warnings

    async def pixels(self) -> RgbArray:
        """Return the upright ``(H, W, 3) uint8`` RGB pixels, as `ImageStore.load`."""
        source = self._source
        if source is None or isinstance(source, _File):
            source = await self._store.load(self.id, source)
            self._source = source
        return source

    async def crop(self, x: int, y: int, width: int, height: int) -> ImageRef:
        """Return a part of the image, in pixels of the upright image, as an image of its own."""
        pixels = await self.pixels()
        part = pixels[y : y + height, x : x + width]
        return ImageRef(self._store, await asyncio.to_thread(image_id, part), part, new=True)


class ImageStore:
    """Opens images and keeps their files for later requests by ``image_id``.

    Files are kept encoded, which takes a tenth of the memory of their pixels.  A known file is
    recognised by its hash and not decoded again.
    """

    def __init__(
        self,
        limits: Limits,
        max_bytes: int,
        shared: SharedTier | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._limits = limits
        self._images: LRUCache[str, _Stored] = LRUCache(max_bytes, _nbytes)
        # By the hash of the file and how it was read.
        self._ids: LRUCache[tuple[bytes, Reading], _Known] = LRUCache(_MAX_IDS)
        self._shared = shared
        self._recently_shared: TTLCache[str, bool] = TTLCache(_MAX_IDS, _SHARE_AGAIN_S, clock)
        self._opening: SingleFlight[tuple[_Known, RgbArray]] = SingleFlight()
        # A decoded image may have 200 MB, so decode few at once, even if their callers have left.
        self._decoders = ThreadPoolExecutor(_DECODERS, thread_name_prefix="decode")

    async def open(
        self, source: bytes | RgbArray | str, options: ImageOptions | None = None
    ) -> ImageRef:
        """Return a reference to an image.

        Args:
            source: a file's bytes, an upright ``(H, W, 3) uint8`` RGB array, or an ``image_id``.
            options: how a file is read; nothing for arrays and ids.

        Raises:
            InvalidImage, ImageTooLarge: see `serve_app.images.decode`.
            InvalidRequest: the file has no such page or channel.
            UnknownImage: the id is malformed.
        """
        if isinstance(source, str):
            return ImageRef(self, source, None)
        if not isinstance(source, bytes):
            return await self._open_array(source)
        if len(source) <= _HASH_INLINE_BYTES:
            digest = _sha256(source)
        else:
            digest = await asyncio.to_thread(_sha256, source)
        file = _File(source, Reading() if options is None else options.reading)
        key = (digest, file.reading)
        known = self._ids.get(key)
        _count_lookup("miss" if known is None else "memory")
        if known is not None:
            self._keep(known.id, file)
            self._share(known.id, file)
            return ImageRef(self, known.id, file, known=known)
        known, pixels = await self._opening.run(
            f"{digest.hex()} {file.reading}", lambda: self._first(key, file)
        )
        return ImageRef(self, known.id, pixels, new=True, known=known)

    async def _open_array(self, source: RgbArray) -> ImageRef:
        # A copy: the caller may write to its array, and then the id would be wrong; and an array
        # that came over a handle would keep memory of the object store in use.
        array = await asyncio.to_thread(check_pixels, source, self._limits)
        id_ = await asyncio.to_thread(image_id, array)
        new = id_ not in self._images
        if new:
            self._keep(id_, array)
        return ImageRef(self, id_, array, new)

    async def _first(self, key: tuple[bytes, Reading], file: _File) -> tuple[_Known, RgbArray]:
        """Decode and identify a file that is not known yet."""
        known, pixels = await self._decoded(file)
        self._ids[key] = known
        self._keep(known.id, file)
        self._share(known.id, file)
        return known, pixels

    def _keep(self, id_: str, image: _Stored) -> None:
        with suppress(ValueError):  # larger than the whole cache
            self._images[id_] = image

    def _share(self, id_: str, file: _File) -> None:
        if self._shared is None or id_ in self._recently_shared:
            return
        key = f"img-{id_}"
        if self._shared.put(key, lambda: add_checksum(key, _packed(file)), len(file.data)):
            self._recently_shared[id_] = True

    async def load(self, id_: str, file: _File | None) -> RgbArray:
        """Return the pixels of an image: of the request's file, or of the one sent earlier.

        Raises:
            UnknownImage: the request has no file, and none is stored.
        """
        image = file or self._images.get(id_)
        if image is not None:
            if file is None:
                _count_lookup("memory")
            return (await self._decoded(image))[1] if isinstance(image, _File) else image
        pixels = await self._from_shared(id_)
        _count_lookup("miss" if pixels is None else "redis")
        if pixels is None:
            raise UnknownImage(
                "this image is not, or no longer, stored: send the image itself", "image_id"
            )
        return pixels

    async def _from_shared(self, id_: str) -> RgbArray | None:
        if self._shared is None:
            return None
        key = f"img-{id_}"
        data = await self._shared.get(key)
        if data is None:
            return None
        content = await asyncio.to_thread(strip_checksum, key, data)
        if content is not None:
            try:
                file = _unpacked(content)
                known, pixels = await self._decoded(file)
                found = known.id
            except (SamServeError, ValueError):
                found = ""
            # Others may write to the tier, so check the pixels against the id.
            if found == id_:
                self._keep(id_, file)
                return pixels
        _count_lookup("corrupt")
        log.warning("invalid image in the shared cache: counted as a miss")
        return None

    async def _decoded(self, file: _File) -> tuple[_Known, RgbArray]:
        return await asyncio.get_running_loop().run_in_executor(self._decoders, self._decode, file)

    def _decode(self, file: _File) -> tuple[_Known, RgbArray]:
        pixels, info, warnings = read_image(file.data, self._limits, file.reading)
        return _Known(image_id(pixels), info, warnings), pixels


class _File(NamedTuple):
    """An image file, and how it is read."""

    data: bytes
    reading: Reading


class _Known(NamedTuple):
    """What a file turned out to be."""

    id: str
    info: ImageInfo | None
    warnings: tuple[ResponseWarning, ...]


_Stored = _File | RgbArray

_PACKED = b"read:"
"""No image file begins so."""


def _packed(file: _File) -> bytes:
    """A file for the shared tier; how it is read stands before it."""
    if file.reading == Reading():
        return file.data
    return _PACKED + json.dumps(file.reading).encode() + b"\n" + file.data


def _unpacked(content: bytes) -> _File:
    """Raises `ValueError` or `SamServeError` for what `_packed` did not write."""
    if not content.startswith(_PACKED):
        return _File(content, Reading())
    head, _, data = content.partition(b"\n")
    page, channel, scaling = json.loads(head[len(_PACKED) :])
    # Others may write to the tier.
    options = ImageOptions(page=page, channel=channel or None, scaling=scaling)
    return _File(data, options.reading)


def _nbytes(image: _Stored) -> int:
    return len(image.data) if isinstance(image, _File) else image.nbytes


def _count_lookup(result: str) -> None:
    CACHE_LOOKUPS.inc(cache="image", result=result)


def _sha256(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()
