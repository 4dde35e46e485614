"""Encoder replicas: pixels in, embedding out.  Stateless."""

from __future__ import annotations

import math
import time

import numpy as np

from serve_app.batching.batcher import Batcher
from serve_app.core.inference import Embedding
from serve_app.core.measurements import Profile
from serve_app.core.settings import Batching, Compute, EncoderSettings
from serve_app.core.types import RgbArray
from serve_app.deployments.replica import EngineReplica
from serve_app.models.factory import ModelSource
from serve_app.scaling.reports import encoder_profile

_WARM_UP_SIDE = 64


class EncoderReplica(EngineReplica):
    """One variant's image encoder, which batches the images of all requests."""

    def __init__(
        self,
        model: str,
        settings: EncoderSettings,
        source: ModelSource,
        profile: Profile | None = None,
    ) -> None:
        super().__init__(settings)
        self._profile = encoder_profile(profile)
        self._batcher = warm_encoder(source, model, settings.compute, settings.batching)
        self.threads = [self._batcher.thread]
        self.devices = {settings.compute.device}

    async def encode(self, pixels: RgbArray, time_left_s: float | None = None) -> Embedding:
        """Embed an upright ``(H, W, 3) uint8`` RGB image.

        Args:
            pixels: The image.
            time_left_s: Seconds until the caller's deadline; None: no deadline.

        Raises:
            DeadlineExceeded: The deadline passed before the encoder began.
        """
        deadline = math.inf if time_left_s is None else time.monotonic() + time_left_s
        return await self._batcher(pixels, deadline)

    def record_autoscaling_stats(self) -> dict[str, float]:
        """Called by Serve for `serve_app.deployments.autoscaling`; items are images."""
        return {**self._profile, **self._batcher.report()}


def warm_encoder(
    source: ModelSource, model: str, compute: Compute, batching: Batching
) -> Batcher[RgbArray, Embedding]:
    """Load an encoder and run it once per batch size, which allocates memory and tunes kernels."""
    engine = source.load_encoder(model, compute)
    black = np.zeros((_WARM_UP_SIDE, _WARM_UP_SIDE, 3), dtype=np.uint8)
    for size in source.warm_up_sizes(model, compute, batching.max_batch_size):
        engine.encode_batch([black] * size)
    return Batcher(engine.encode_batch, batching, "images")
