"""Decoder replicas: prompts in, masks out.  Each holds an embedding cache."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import numpy as np
from ray.serve.handle import DeploymentHandle

from serve_app.cache.shared import shared_tier
from serve_app.cache.tiers import TieredEmbeddingCache
from serve_app.compute.engines import ModelSource, load_decoder, load_encoder
from serve_app.deployments.batching import Batcher
from serve_app.deployments.handles import RemoteEncoder, SharedPixels
from serve_app.domain.settings import CacheSettings, VariantSettings
from serve_app.domain.types import (
    DecodeJob,
    DecodeOptions,
    Embedding,
    Mask,
    Prediction,
    Prompt,
    RgbArray,
)
from serve_app.predictor import VariantPredictor


class DecoderReplica:
    """One variant's mask decoder, batching the prompts of all users and images.

    With ``encoder`` None (fused layout) the encoder runs in this replica too.
    """

    def __init__(
        self,
        settings: VariantSettings,
        cache: CacheSettings,
        source: ModelSource,
        encoder: DeploymentHandle[Any] | None = None,
    ) -> None:
        spec = source.spec(settings.model)
        engine = load_decoder(source, settings.model, settings.decoder.compute)
        self._batcher: Batcher[DecodeJob, tuple[Mask, ...]] = Batcher(
            engine.decode_batch, settings.decoder.batching
        )
        if encoder is None:
            compute = settings.decoder.compute
            local = load_encoder(source, settings.model, compute)
            local.encode_batch([np.zeros((64, 64, 3), dtype=np.uint8)])
            images: Batcher[RgbArray, Embedding] = Batcher(
                local.encode_batch, settings.encoder.batching
            )

            async def encode(pixels: SharedPixels) -> Embedding:
                return await images(await pixels.array())
        else:
            encode = RemoteEncoder(encoder).encode
            compute = settings.encoder.compute
        self._predictor: VariantPredictor[SharedPixels] = VariantPredictor(
            TieredEmbeddingCache(cache.embedding_bytes, shared_tier(cache)),
            encode,
            self._decode,
            weights_hash=spec.weights_hash,
            preprocessing=spec.preprocessing,
            dtype=compute.dtype,
        )

    async def predict(
        self,
        image_id: str,
        pixels: SharedPixels | None,
        prompts: Sequence[Prompt],
        options: DecodeOptions,
    ) -> Prediction | None:
        """See `serve_app.ports.Predictor.predict`."""
        return await self._predictor.predict(image_id, pixels, prompts, options)

    async def _decode(self, jobs: Sequence[DecodeJob]) -> list[tuple[Mask, ...]]:
        return list(await asyncio.gather(*(self._batcher(job) for job in jobs)))

    async def ping(self) -> bool:
        """Answers once the weights are loaded."""
        return True

    async def check_health(self) -> None:
        """Fails when the engine's thread no longer takes work."""
        await self._batcher.in_thread(_nothing)


def _nothing() -> None:
    """Runs when the thread gets to it."""
