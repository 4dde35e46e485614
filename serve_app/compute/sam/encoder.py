"""SAM's image encoder as an `EncoderEngine`."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from segment_anything.modeling import Sam

from serve_app.compute.devices import torch_dtype
from serve_app.compute.sam.frame import Frame, as_input_tensor
from serve_app.domain.settings import Compute
from serve_app.domain.types import Embedding, RgbArray


class SamEncoder:
    """Embeds batches of images with any of SAM's encoders (`serve_app.compute.sam.model`).

    The embedding's only tensor is ``image_embed (256, 64, 64)``: float32 on a CPU, float16 from
    a GPU in half precision (bfloat16 has no numpy type).
    """

    def __init__(self, sam: Sam, compute: Compute) -> None:
        self._device = torch.device(compute.device)
        self._dtype = torch_dtype(compute.dtype)
        # Channels last is what the convolutions of both CPU and GPU kernels want.
        self._encoder = sam.image_encoder.to(
            self._device, self._dtype, memory_format=torch.channels_last
        )
        self._mean = sam.pixel_mean.flatten().cpu().numpy()
        self._std = sam.pixel_std.flatten().cpu().numpy()

    @torch.inference_mode()
    def encode_batch(self, images: Sequence[RgbArray]) -> list[Embedding]:
        """Embed upright ``(H, W, 3) uint8`` images of any sizes in one pass."""
        inputs = torch.stack(
            [
                as_input_tensor(Frame.padded(*i.shape[:2]).resize(i), self._mean, self._std)
                for i in images
            ]
        )
        inputs = inputs.to(self._device, self._dtype, memory_format=torch.channels_last)
        features = self._encoder(inputs)
        if self._dtype is not torch.float32:
            features = features.to(torch.float16)
        # Copies: a view would keep the whole batch in memory while one image of it is cached.
        return [
            Embedding({"image_embed": array.copy()}, height=image.shape[0], width=image.shape[1])
            for array, image in zip(features.cpu().numpy(), images, strict=True)
        ]
