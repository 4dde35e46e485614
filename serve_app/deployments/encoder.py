"""Encoder replicas: pixels in, embedding out.  Stateless."""

from __future__ import annotations

import numpy as np

from serve_app.compute.engines import ModelSource, load_encoder
from serve_app.deployments.batching import Batcher
from serve_app.domain.settings import EncoderSettings
from serve_app.domain.types import Embedding, RgbArray

_WARM_UP_SIDE = 64


class EncoderReplica:
    """One variant's image encoder, batching the images of all users."""

    def __init__(self, model: str, settings: EncoderSettings, source: ModelSource) -> None:
        engine = load_encoder(source, model, settings.compute)
        # The first pass allocates and tunes; it must not be a user's.
        engine.encode_batch([np.zeros((_WARM_UP_SIDE, _WARM_UP_SIDE, 3), dtype=np.uint8)])
        self._batcher: Batcher[RgbArray, Embedding] = Batcher(
            engine.encode_batch, settings.batching
        )

    async def encode(self, pixels: RgbArray) -> Embedding:
        """Embed an upright ``(H, W, 3) uint8`` RGB image."""
        return await self._batcher(pixels)

    async def check_health(self) -> None:
        """Fails when the engine's thread no longer takes work."""
        await self._batcher.in_thread(_nothing)


def _nothing() -> None:
    """Runs when the thread gets to it."""
