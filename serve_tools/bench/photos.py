"""The photos for all systems: large JPEGs, and new ones that are in no cache."""

from __future__ import annotations

from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageOps

from serve_app.core.types import RgbArray

SIZE = (1800, 1200)
"""Width and height of the photographs that come with scikit-image, once scaled up."""

_NAMES = ("coffee.png", "chelsea.png", "astronaut.png")
_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff", ".bmp")
_BLOCK = 64


@dataclass(frozen=True, slots=True, eq=False)
class Photo:
    """An upright ``(H, W, 3) uint8`` RGB image and its JPEG file."""

    name: str
    pixels: RgbArray
    jpeg: bytes

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels."""
        return self.pixels.shape[1], self.pixels.shape[0]


@dataclass
class Photos:
    """Three known photos, and new ones on demand."""

    known: tuple[Photo, ...]
    _made: int = 0
    _spare: list[Photo] = field(default_factory=list)

    def prepare(self, count: int) -> None:
        """Make new photos ahead of a window, so that making them takes no time in it."""
        while len(self._spare) < count:
            self._spare.append(self._make())

    def new(self) -> Photo:
        """A photo that differs from every earlier one in a block of noise."""
        return self._spare.pop() if self._spare else self._make()

    def _make(self) -> Photo:
        self._made += 1
        base = self.known[self._made % len(self.known)]
        # Different from any of another run, too: a running service may have cached those.
        rng = np.random.default_rng()
        pixels = base.pixels.copy()
        width, height = base.size
        x, y = int(rng.integers(width - _BLOCK)), int(rng.integers(height - _BLOCK))
        pixels[y : y + _BLOCK, x : x + _BLOCK] = rng.integers(0, 256, (_BLOCK, _BLOCK, 3), np.uint8)
        return photo(f"new-{self._made}", pixels)


def photo(name: str, pixels: RgbArray) -> Photo:
    """A photo as JPEG file, and the pixels that the file decodes to."""
    done, encoded = cv2.imencode(
        ".jpg", cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, 90]
    )
    if not done:
        raise ValueError(f"{name} cannot be written as JPEG")
    decoded = cv2.imdecode(encoded, cv2.IMREAD_COLOR_RGB)
    return Photo(name, np.asarray(decoded, np.uint8), encoded.tobytes())


def load_photos(folder: Path | None = None, size: tuple[int, int] = SIZE) -> Photos:
    """Three photos of a folder as they are, or scikit-image's scaled to ``size``.

    Raises:
        OSError: an image cannot be read.
        ValueError: the folder has fewer than three images, or one is too small.
    """
    if folder is None:
        return Photos(tuple(photo(name, _scaled(name, size)) for name in _NAMES))
    files = [path for path in sorted(folder.iterdir()) if path.suffix.lower() in _SUFFIXES][:3]
    if len(files) < 3:
        raise ValueError("three images are needed")
    photos = []
    for path in files:
        with Image.open(path) as image:
            upright = ImageOps.exif_transpose(image).convert("RGB")
        if min(upright.size) <= _BLOCK:
            raise ValueError(f"{path.name} is too small")
        photos.append(photo(path.name, np.asarray(upright)))
    return Photos(tuple(photos))


def _scaled(name: str, size: tuple[int, int]) -> RgbArray:
    with resources.files("skimage.data").joinpath(name).open("rb") as file:
        image = Image.open(file).convert("RGB")
    return np.asarray(ImageOps.fit(image, size, Image.Resampling.LANCZOS))
