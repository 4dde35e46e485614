"""Encoder replicas: pixels in, embedding out.  Stateless."""

from __future__ import annotations

import math
import time

import numpy as np

from serve_app.batching.batcher import Batcher
from serve_app.core.settings import Batching, Compute, EncoderSettings
from serve_app.core.types import Embedding, RgbArray
from serve_app.deployments.replica import EngineReplica
from serve_app.models.factory import ModelSource

_WARM_UP_SIDE = 64


class EncoderReplica(EngineReplica):
    """One variant's image encoder, batching the images of all users."""

    def __init__(self, model: str, settings: EncoderSettings, source: ModelSource) -> None:
        super().__init__(settings)
        self._batcher = warm_encoder(source, model, settings.compute, settings.batching)
        self.threads = [self._batcher.thread]
        self.devices = {settings.compute.device}

    async def encode(self, pixels: RgbArray, time_left_s: float | None = None) -> Embedding:
        """Embed an upright ``(H, W, 3) uint8`` RGB image.

        Args:
            time_left_s: seconds until the caller's time is over; None: no bound.

        Raises:
            DeadlineExceeded: it was over before the image's turn came.
        """
        end = math.inf if time_left_s is None else time.monotonic() + time_left_s
        return await self._batcher(pixels, end)

    def record_autoscaling_stats(self) -> dict[str, float]:
        """Called by Serve for `serve_app.deployments.autoscaling`; items are images."""
        return self._batcher.report()


def warm_encoder(
    source: ModelSource, model: str, compute: Compute, batching: Batching
) -> Batcher[RgbArray, Embedding]:
    """A loaded encoder that has run with each batch size it will see: that allocates and tunes."""
    engine = source.load_encoder(model, compute)
    black = np.zeros((_WARM_UP_SIDE, _WARM_UP_SIDE, 3), dtype=np.uint8)
    for size in source.warm_up_sizes(model, compute, batching.max_batch_size):
        engine.encode_batch([black] * size)
    return Batcher(engine.encode_batch, batching, "images")
