"""Step 1: what the caller sent becomes a named image, decoded only when pixels are needed."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import math
import time
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

from serve_app.cache.codec import seal, unseal
from serve_app.cache.memory import ByteBoundedLru
from serve_app.cache.shared import SharedTier
from serve_app.core.errors import SamServeError, UnknownImage
from serve_app.core.image_id import image_id, parse_image_id
from serve_app.core.limits import Limits
from serve_app.core.single_flight import SingleFlight
from serve_app.core.types import RgbArray
from serve_app.images.decode import check_pixels, decode_image
from serve_app.telemetry.metrics import CACHE_LOOKUPS

log = logging.getLogger(__name__)

_MAX_FILES = 65_536
_SHARED_AGAIN_S = 10.0
"""A file that comes again is written again after this: the shared tier may have lost it."""

_DECODINGS = 4
_HASHED_AT_ONCE = 2**20
"""Bytes that are hashed in a millisecond, hardly more than a thread's turn costs."""


class ImageRef:
    """An image of a request: its name and size, and its pixels when somebody asks.

    Attributes:
        id: the content-addressed name.
        width, height: of the upright image in pixels.
        new: first seen with this request, so that probably no variant knows it.
    """

    def __init__(
        self, store: ImageStore, name: str, source: bytes | RgbArray | None, new: bool = False
    ) -> None:
        self._store = store
        self._source = source
        self.id = name
        self.width, self.height = parse_image_id(name)
        self.new = new

    async def pixels(self) -> RgbArray:
        """The upright ``(H, W, 3) uint8`` RGB pixels.

        Raises:
            UnknownImage: only the id was sent, and the image is no longer kept.
        """
        source = self._source
        if source is None or isinstance(source, bytes):
            source = await self._store.load(self.id, source)
            self._source = source
        return source

    async def crop(self, x: int, y: int, width: int, height: int) -> ImageRef:
        """A part of the image as an image of its own."""
        pixels = await self.pixels()
        part = pixels[y : y + height, x : x + width]
        return ImageRef(self._store, await asyncio.to_thread(image_id, part), part, new=True)


@dataclass(slots=True)
class _File:
    """A file that was seen: its image's name, and when the shared tier was last given it."""

    name: str
    shared_at: float = -math.inf


class ImageStore:
    """Opens images and keeps their files for later requests by ``image_id``.

    Files are kept as they came, which is a tenth of their pixels; a file seen before is known
    by its hash and not decoded again.
    """

    def __init__(
        self,
        limits: Limits,
        max_bytes: int,
        shared: SharedTier | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._limits = limits
        self._kept: ByteBoundedLru[bytes | RgbArray] = ByteBoundedLru(max_bytes)
        self._files: OrderedDict[bytes, _File] = OrderedDict()
        self._shared = shared
        self._clock = clock
        self._opening: SingleFlight[tuple[str, RgbArray]] = SingleFlight()
        # A decoded image may be 200 MB: only so many at once, whether or not their callers wait.
        self._decoders = ThreadPoolExecutor(_DECODINGS, thread_name_prefix="decode")

    async def open(self, source: bytes | RgbArray | str) -> ImageRef:
        """Name an image.

        Args:
            source: a file's bytes, an upright RGB array, or an ``image_id``.

        Raises:
            InvalidImage, ImageTooLarge: see `serve_app.images.decode`.
            UnknownImage: malformed id.
        """
        if isinstance(source, str):
            return ImageRef(self, source, None)
        if not isinstance(source, bytes):
            # A copy: the caller may write to its array, of which the name would then lie, and
            # an array that came over a handle keeps the object store's memory.
            array = await asyncio.to_thread(check_pixels(source, self._limits).copy)
            array.flags.writeable = False
            name = await asyncio.to_thread(image_id, array)
            new = self._kept.get(name) is None
            if new:
                self._kept.put(name, array, array.nbytes)
            return ImageRef(self, name, array, new)
        if len(source) <= _HASHED_AT_ONCE:
            digest = _sha256(source)
        else:
            digest = await asyncio.to_thread(_sha256, source)
        known = self._files.get(digest)
        _looked_up("miss" if known is None else "memory")
        if known is not None:
            self._files.move_to_end(digest)
            self._kept.put(known.name, source, len(source))
            self._share(known, source)
            return ImageRef(self, known.name, source)
        name, pixels = await self._opening.run(digest.hex(), lambda: self._first(digest, source))
        return ImageRef(self, name, pixels, new=True)

    async def _first(self, digest: bytes, source: bytes) -> tuple[str, RgbArray]:
        """Decode and name a file that was not seen before."""
        name, pixels = await self._decoded(source)
        file = self._files[digest] = _File(name)
        if len(self._files) > _MAX_FILES:
            self._files.popitem(last=False)
        self._kept.put(name, source, len(source))
        self._share(file, source)
        return name, pixels

    def _share(self, file: _File, source: bytes) -> None:
        now = self._clock()
        if self._shared is None or now - file.shared_at < _SHARED_AGAIN_S:
            return
        key = _shared_key(file.name)
        if self._shared.put(key, partial(seal, key, source), len(source)):
            file.shared_at = now

    async def load(self, name: str, file: bytes | None) -> RgbArray:
        """Pixels of an image: of the request's file, or of the one sent earlier.

        Raises:
            UnknownImage: no file came with the request, and none is kept.
        """
        kept = file or self._kept.get(name)
        if file is None and kept is not None:
            _looked_up("memory")
        if kept is None:
            pixels = await self._from_shared(name)
            _looked_up("miss" if pixels is None else "redis")
            if pixels is None:
                raise UnknownImage(
                    "this image is not, or no longer, kept here: send the image itself", "image_id"
                )
            return pixels
        return (await self._decoded(kept))[1] if isinstance(kept, bytes) else kept

    async def _from_shared(self, name: str) -> RgbArray | None:
        if self._shared is None:
            return None
        key = _shared_key(name)
        data = await self._shared.get(key)
        if data is None:
            return None
        file = await asyncio.to_thread(unseal, key, data)
        if file is not None:
            try:
                found, pixels = await self._decoded(file)
            except SamServeError:
                found = ""
            # Whoever may write there could hand out anything; the name tells the pixels.
            if found == name:
                self._kept.put(name, file, len(file))
                return pixels
        _looked_up("corrupt")
        log.warning("an image of the shared cache was damaged or foreign; it counts as a miss")
        return None

    async def _decoded(self, data: bytes) -> tuple[str, RgbArray]:
        return await asyncio.get_running_loop().run_in_executor(self._decoders, self._decode, data)

    def _decode(self, data: bytes) -> tuple[str, RgbArray]:
        pixels = decode_image(data, self._limits).pixels
        return image_id(pixels), pixels


def _looked_up(result: str) -> None:
    CACHE_LOOKUPS.inc(cache="image", result=result)


def _sha256(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()


def _shared_key(name: str) -> str:
    return f"img-{name}"
