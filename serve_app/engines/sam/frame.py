"""Mapping between an image's pixels and a model's square input of 1024 x 1024.

Both resize modes (`serve_app.core.geometry.ResizeMode`) are implemented here.

Low-resolution logits have one frame at the border of a model family, that of the padded square
(`serve_app.core.types`), so that those of one family are a mask input of another.  Models that
stretch convert them: `Frame.to_padded`, `Frame.from_padded`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from PIL import Image

from serve_app.core.geometry import ResizeMode
from serve_app.core.types import LOW_RES, Float32Array, RgbArray

IMAGE_SIZE = 1024

PADDING_LOGIT = -15.0
"""Outside of the image in logits moved to the padded frame: about what SAM itself gives there."""

# ImageNet's mean and deviation, in units of 0-255.
_MEAN = np.array([123.675, 116.28, 103.53], dtype=np.float32)
_STD = np.array([58.395, 57.12, 57.375], dtype=np.float32)


@dataclass(frozen=True, slots=True)
class Frame:
    """The place of one image in the model's square input.

    Attributes:
        height, width: size of the upright image in pixels.
        input_height, input_width: size of the resized image inside the square, in pixels.
        resize_mode: ``pad`` or ``stretch``.
    """

    height: int
    width: int
    input_height: int
    input_width: int
    resize_mode: ResizeMode

    @classmethod
    def of(cls, height: int, width: int, resize_mode: ResizeMode) -> Frame:
        """The frame of an upright image of ``height`` x ``width`` pixels."""
        if resize_mode == "stretch":
            return cls(height, width, IMAGE_SIZE, IMAGE_SIZE, resize_mode)
        scale = IMAGE_SIZE / max(height, width)
        # A side of less than half a pixel would vanish: very long images keep one row.
        rows, columns = (max(1, int(side * scale + 0.5)) for side in (height, width))
        return cls(height, width, rows, columns, resize_mode)

    def resize(self, pixels: RgbArray) -> RgbArray:
        """Resize an image to ``(input_height, input_width, 3) uint8``.

        Pillow's bilinear filter with antialiasing, which `segment_anything` uses too.
        """
        if pixels.shape[:2] == (self.input_height, self.input_width):
            return pixels
        size = (self.input_width, self.input_height)
        return np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.BILINEAR))

    def to_input(self, xy: Float32Array) -> Float32Array:
        """Map ``(..., 2)`` points from image pixels to pixels of the square."""
        scale = np.array([self.input_width / self.width, self.input_height / self.height])
        scaled: Float32Array = (xy.astype(np.float64) * scale).astype(np.float32)
        return scaled

    def to_padded(self, logits: Float32Array) -> Float32Array:
        """``(256, 256)`` logits of the model in the frame of the padded square.

        SAM's own stay as they are; others have `PADDING_LOGIT` where the padding is.
        """
        if self.resize_mode == "pad":
            return logits
        to_rows, to_columns = (weights for weights, _ in self._moves())
        padded: Float32Array = np.full((LOW_RES, LOW_RES), PADDING_LOGIT, np.float32)
        padded[: len(to_rows), : len(to_columns)] = _product(to_rows, logits, to_columns)
        return padded

    def from_padded(self, logits: Float32Array) -> Float32Array:
        """The inverse of `to_padded`; what stands in the padding is dropped."""
        if self.resize_mode == "pad":
            return logits
        from_rows, from_columns = (weights for _, weights in self._moves())
        image = logits[: from_rows.shape[1], : from_columns.shape[1]]
        return _product(from_rows, image, from_columns)

    def _moves(self) -> tuple[tuple[Float32Array, Float32Array], ...]:
        padded = Frame.of(self.height, self.width, "pad")
        return _moves(padded.input_height), _moves(padded.input_width)


def _product(rows: Float32Array, values: Float32Array, columns: Float32Array) -> Float32Array:
    """``rows @ values @ columns.T`` on torch's threads: those of BLAS would compete with them."""
    import torch

    parts = [torch.from_numpy(np.array(part)) for part in (rows, values, columns)]
    product: Float32Array = (parts[0] @ parts[1] @ parts[2].T).numpy()
    return product


@lru_cache(maxsize=64)
def _moves(inputs: int) -> tuple[Float32Array, Float32Array]:
    """Weights along a side from stretched to padded cells, and back.

    Args:
        inputs: length of the side in the padded square of 1024.
    """
    length = inputs * LOW_RES / IMAGE_SIZE
    cells = math.ceil(length)
    step = LOW_RES / length
    return _resampling(cells, LOW_RES, step), _resampling(LOW_RES, cells, 1 / step)


def _resampling(targets: int, sources: int, step: float) -> Float32Array:
    """``(targets, sources)`` weights of linear interpolation, antialiased where it shrinks.

    Args:
        step: source cells for each target cell.
    """
    # The last cell may lie in the image only in part, its centre outside.
    centers = np.minimum((np.arange(targets) + 0.5) * step - 0.5, sources - 1)
    distances = np.abs(np.arange(sources) - centers[:, np.newaxis])
    weights = np.clip(1 - distances / max(1.0, step), 0, None)
    normalized: Float32Array = (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)
    return normalized


def model_input(image: RgbArray, resize_mode: ResizeMode) -> Float32Array:
    """An image as an encoder's input: resized, normalised, padded with zeros.

    Args:
        image: ``(H, W, 3) uint8``, upright.
        resize_mode: the model's.

    Returns:
        ``(1, 3, 1024, 1024) float32``.
    """
    height, width = image.shape[:2]
    resized = Frame.of(height, width, resize_mode).resize(image)
    rows, columns = resized.shape[:2]
    canvas = np.zeros((1, 3, IMAGE_SIZE, IMAGE_SIZE), dtype=np.float32)
    canvas[0, :, :rows, :columns] = ((resized.astype(np.float32) - _MEAN) / _STD).transpose(2, 0, 1)
    return canvas
