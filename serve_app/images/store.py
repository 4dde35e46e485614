"""The image store: gives each image a content-addressed id; decodes only when pixels are needed."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial

from cachetools import LRUCache, TTLCache

from serve_app.cache.shared import SharedTier, add_checksum, strip_checksum
from serve_app.core.errors import SamServeError, UnknownImage
from serve_app.core.limits import Limits
from serve_app.core.request import image_id, parse_image_id
from serve_app.core.single_flight import SingleFlight
from serve_app.core.types import ResponseWarning, RgbArray
from serve_app.images.decode import check_pixels, decode_image
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
        warnings: about the file that was decoded.
        new: whether this request sent it for the first time, so no variant has it cached.
    """

    def __init__(
        self, store: ImageStore, id_: str, source: bytes | RgbArray | None, new: bool = False
    ) -> None:
        self._store = store
        self._source = source
        self.id = id_
        self.width, self.height = parse_image_id(id_)
        self.new = new
        self.warnings: tuple[ResponseWarning, ...] = ()

    async def pixels(self) -> RgbArray:
        """Return the upright ``(H, W, 3) uint8`` RGB pixels, as `ImageStore.load`."""
        source = self._source
        if source is None or isinstance(source, bytes):
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
        self._images: LRUCache[str, bytes | RgbArray] = LRUCache(max_bytes, _nbytes)
        self._ids: LRUCache[bytes, str] = LRUCache(_MAX_IDS)  # by the hash of the file
        self._shared = shared
        self._recently_shared: TTLCache[str, bool] = TTLCache(_MAX_IDS, _SHARE_AGAIN_S, clock)
        self._opening: SingleFlight[tuple[str, RgbArray]] = SingleFlight()
        # A decoded image may have 200 MB, so decode few at once, even if their callers have left.
        self._decoders = ThreadPoolExecutor(_DECODERS, thread_name_prefix="decode")

    async def open(self, source: bytes | RgbArray | str) -> ImageRef:
        """Return a reference to an image.

        Args:
            source: a file's bytes, an upright ``(H, W, 3) uint8`` RGB array, or an ``image_id``.

        Raises:
            InvalidImage, ImageTooLarge: see `serve_app.images.decode`.
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
        known = self._ids.get(digest)
        _count_lookup("miss" if known is None else "memory")
        if known is not None:
            self._keep(known, source)
            self._share(known, source)
            return ImageRef(self, known, source)
        id_, pixels = await self._opening.run(digest.hex(), lambda: self._first(digest, source))
        return ImageRef(self, id_, pixels, new=True)

    async def _open_array(self, source: RgbArray) -> ImageRef:
        # A copy: the caller may write to its array, and then the id would be wrong; and an array
        # that came over a handle would keep memory of the object store in use.
        array = await asyncio.to_thread(check_pixels, source, self._limits)
        id_ = await asyncio.to_thread(image_id, array)
        new = id_ not in self._images
        if new:
            self._keep(id_, array)
        return ImageRef(self, id_, array, new)

    async def _first(self, digest: bytes, source: bytes) -> tuple[str, RgbArray]:
        """Decode and identify a file that is not known yet."""
        id_, pixels = await self._decoded(source)
        self._ids[digest] = id_
        self._keep(id_, source)
        self._share(id_, source)
        return id_, pixels

    def _keep(self, id_: str, image: bytes | RgbArray) -> None:
        with suppress(ValueError):  # larger than the whole cache
            self._images[id_] = image

    def _share(self, id_: str, source: bytes) -> None:
        if self._shared is None or id_ in self._recently_shared:
            return
        key = f"img-{id_}"
        if self._shared.put(key, partial(add_checksum, key, source), len(source)):
            self._recently_shared[id_] = True

    async def load(self, id_: str, file: bytes | None) -> RgbArray:
        """Return the pixels of an image: of the request's file, or of the one sent earlier.

        Raises:
            UnknownImage: the request has no file, and none is stored.
        """
        image = file or self._images.get(id_)
        if image is not None:
            if file is None:
                _count_lookup("memory")
            return (await self._decoded(image))[1] if isinstance(image, bytes) else image
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
        file = await asyncio.to_thread(strip_checksum, key, data)
        if file is not None:
            try:
                found, pixels = await self._decoded(file)
            except SamServeError:
                found = ""
            # Others may write to the tier, so check the pixels against the id.
            if found == id_:
                self._keep(id_, file)
                return pixels
        _count_lookup("corrupt")
        log.warning("invalid image in the shared cache: counted as a miss")
        return None

    async def _decoded(self, data: bytes) -> tuple[str, RgbArray]:
        return await asyncio.get_running_loop().run_in_executor(self._decoders, self._decode, data)

    def _decode(self, data: bytes) -> tuple[str, RgbArray]:
        pixels = decode_image(data, self._limits)
        return image_id(pixels), pixels


def _nbytes(image: bytes | RgbArray) -> int:
    return len(image) if isinstance(image, bytes) else image.nbytes


def _count_lookup(result: str) -> None:
    CACHE_LOOKUPS.inc(cache="image", result=result)


def _sha256(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()
