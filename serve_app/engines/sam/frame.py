"""Mapping between an image's pixels and a model's square input of 1024 x 1024.

`Frame` implements both resize modes (`serve_app.core.geometry.ResizeMode`) for prompts and masks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from PIL import Image

if TYPE_CHECKING:
    from torch import Tensor

from serve_app.core.geometry import ResizeMode
from serve_app.core.types import LOW_RES, Float32Array, RgbArray

IMAGE_SIZE = 1024


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

    def weights(self) -> tuple[Tensor, Tensor]:
        """Interpolation weights: full-size logits are ``rows @ low_res_logits @ columns.T``.

        With ``pad``: bilinear to 1024, cropped to the image's part, bilinear to the image, as in
        `segment_anything`.  With ``stretch``: bilinear to the image in one step.

        Returns:
            ``(height, 256)`` and ``(width, 256)``, both float32.
        """
        sides = (self.height, self.input_height), (self.width, self.input_width)
        rows, columns = (self._side_weights(*side) for side in sides)
        return rows, columns

    def _side_weights(self, pixels: int, inputs: int) -> Tensor:
        # Importing torch takes seconds, and only decoders need it.
        import torch
        from torch.nn import functional as F

        cells = torch.eye(LOW_RES)[None]
        if self.resize_mode == "pad":
            square = F.interpolate(cells, IMAGE_SIZE, mode="linear", align_corners=False)
            cells = square[..., :inputs]
        return F.interpolate(cells, pixels, mode="linear", align_corners=False)[0].T.contiguous()


def as_input(
    resized: RgbArray, mean: NDArray[np.float32], std: NDArray[np.float32]
) -> Float32Array:
    """Normalise a resized image and pad it with zeros.

    Args:
        resized: ``(h, w, 3) uint8``, at most 1024 x 1024.
        mean, std: of each channel, in units of 0-255.

    Returns:
        ``(3, 1024, 1024) float32``.
    """
    canvas = np.zeros((3, IMAGE_SIZE, IMAGE_SIZE), dtype=np.float32)
    height, width = resized.shape[:2]
    normalised = (resized.astype(np.float32) - mean) / std
    canvas[:, :height, :width] = normalised.transpose(2, 0, 1)
    return canvas
