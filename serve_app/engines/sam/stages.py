"""The decoder's three modules (`serve_app.engines.sam.two_way`) run by eager torch, on any device.

On CPUs `serve_app.engines.sam.stages_openvino` is faster.
"""

from __future__ import annotations

from typing import cast

from segment_anything.modeling import MaskDecoder
from torch import Tensor

from serve_app.engines.sam.two_way import ImageSide, ProjectImage, TwoWay, Upscale

Attended = tuple[Tensor, Tensor, Tensor]
"""Predicted IoU, mask weights and image positions, as `TwoWay` returns them."""

MASKS = 3
"""Masks upscaled per prompt, always three: it costs little more, and one shape is compiled."""


class TorchStages:
    """Eager torch.

    On a GPU a chunk has many prompts, of any images.  On a CPU it has one: a second prompt's
    activations (4 MiB each) would evict the first one's from the CPU cache.

    Attributes:
        chunk: the most efficient number of prompts in one pass.
        mixes_images: prompts of different images may share a chunk.
    """

    def __init__(self, decoder: MaskDecoder, image_pe: Tensor) -> None:
        self.mixes_images = image_pe.device.type == "cuda"
        self.chunk = 64 if self.mixes_images else 1
        self._project = ProjectImage(decoder, image_pe)
        self._attend = TwoWay(decoder, image_pe)
        self._upscale = Upscale(decoder)

    def project(self, dense: Tensor) -> ImageSide:
        """As `ProjectImage`."""
        return ImageSide(*self._project(dense))

    def attend(self, side: ImageSide, prompts: Tensor, padding: Tensor) -> Attended:
        """As `TwoWay`; the result is valid until the same thread's next call."""
        return cast(Attended, self._attend(*side, prompts, padding))

    def upscale(self, keys: Tensor, weights: Tensor) -> Tensor:
        """As `Upscale`, of `MASKS` masks each; valid until the same thread's next call."""
        return cast(Tensor, self._upscale(keys, weights))
