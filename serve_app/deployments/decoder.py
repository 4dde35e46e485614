"""Decoder replicas: prompts in, masks out.  Each holds an embedding cache."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from ray.serve.handle import DeploymentHandle

from serve_app.cache.shared import shared_tier
from serve_app.cache.tiers import TieredEmbeddingCache
from serve_app.compute.engines import ModelSource, load_decoder
from serve_app.deployments.batching import Batcher
from serve_app.deployments.encoder import warm_encoder
from serve_app.deployments.handles import RemoteEncoder, SharedPixels, answer_of
from serve_app.deployments.replica import EngineReplica
from serve_app.domain.settings import CacheSettings, VariantSettings
from serve_app.domain.types import (
    DecodeJob,
    DecodeOptions,
    Embedding,
    Mask,
    Prediction,
    Prompt,
)
from serve_app.predictor import VariantPredictor
from serve_app.routing.variants import encoder_compute


class DecoderReplica(EngineReplica):
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
        super().__init__()
        spec = source.spec(settings.model)
        engine = load_decoder(source, settings.model, settings.decoder.compute)
        self._batcher: Batcher[DecodeJob, tuple[Mask, ...]] = Batcher(
            engine.decode_batch, settings.decoder.batching
        )
        self.threads = [self._batcher.thread]
        self._encoder = encoder
        compute = encoder_compute(settings)
        if encoder is None:
            images = warm_encoder(source, settings.model, compute, settings.encoder.batching)
            self.threads.append(images.thread)

            async def encode(pixels: SharedPixels) -> Embedding:
                return await images(await pixels.array())
        else:
            encode = RemoteEncoder(encoder).encode
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
        """Answers once the weights of decoder and encoder are loaded."""
        return self._encoder is None or await answer_of(self._encoder.ping.remote())
