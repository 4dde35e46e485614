"""Decoder replicas: prompts in, masks out.  Each has an embedding cache."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextvars import ContextVar
from dataclasses import replace
from functools import partial
from typing import Any

from ray import serve
from ray.serve.handle import DeploymentHandle

from serve_app.batching.batcher import Batcher
from serve_app.batching.stats import HitRate
from serve_app.cache.shared import shared_tier
from serve_app.core.deadline import time_limit, until
from serve_app.core.errors import DeadlineExceeded
from serve_app.core.inference import DecodeJob, DecodeOptions, Embedding, Prediction, ReplicaLoad
from serve_app.core.ports import DecoderEngine
from serve_app.core.settings import CacheSettings, VariantSettings
from serve_app.core.types import CacheTier, Mask, Prompt, RgbArray
from serve_app.deployments.calls import ImageObjectRef, RemoteEncoder, await_response
from serve_app.deployments.engines import EngineReplica, warm_encoder
from serve_app.embeddings.predictor import VariantPredictor
from serve_app.embeddings.tiers import TieredEmbeddingCache
from serve_app.models.factory import ModelSource

_Pass = tuple[float, float]
"""Start and duration of a pass, in seconds."""

_Decoded = tuple[tuple[Mask, ...], _Pass]

_PASSES: ContextVar[set[_Pass]] = ContextVar("passes")
"""Passes of the current request; its prompts may share them."""


def _timed(engine: DecoderEngine, jobs: Sequence[DecodeJob]) -> list[_Decoded]:
    began = time.perf_counter()
    decoded = engine.decode_batch(jobs)
    timing = began, time.perf_counter() - began
    return [(masks, timing) for masks in decoded]


class DecoderReplica(EngineReplica):
    """One variant's mask decoder, which batches the prompts of all requests.

    ``encoder`` is the encoder deployment; None (fused layout): the encoder runs in this replica.
    """

    def __init__(
        self,
        settings: VariantSettings,
        cache: CacheSettings,
        source: ModelSource,
        encoder: DeploymentHandle[Any] | None = None,
    ) -> None:
        super().__init__(settings.decoder)
        self._name = serve.get_replica_context().replica_tag
        spec = source.spec(settings.model)
        engine = source.load_decoder(settings.model, settings.decoder.compute)
        self._batcher: Batcher[DecodeJob, _Decoded] = Batcher(
            partial(_timed, engine), settings.decoder.batching, "prompts"
        )
        self.threads = [self._batcher.thread]
        self.devices = {settings.decoder.compute.device}
        self._images: Batcher[RgbArray, Embedding] | None = None
        self._hits = HitRate()
        self._encoder = encoder
        compute = settings.encoder_compute
        if encoder is None:
            images = warm_encoder(source, settings.model, compute, settings.encoder.batching)
            self.threads.append(images.thread)
            self.devices.add(compute.device)
            self._images = images

            async def encode(image: ImageObjectRef) -> Embedding:
                return await images(await image.get(), until())
        else:
            encode = RemoteEncoder(encoder).encode
        self._predictor: VariantPredictor[ImageObjectRef] = VariantPredictor(
            TieredEmbeddingCache(cache.embedding_bytes, shared_tier(cache)),
            encode,
            self._decode,
            weights_hash=spec.weights_hash,
            preprocessing=spec.preprocessing,
            dtype=compute.dtype,
            resize_mode=spec.segmentation.resize_mode,
        )

    async def predict(
        self,
        image_id: str,
        pixels: ImageObjectRef | None,
        prompts: Sequence[Prompt],
        options: DecodeOptions,
    ) -> Prediction | None:
        """See `serve_app.core.ports.Predictor.predict`."""
        # This replica is not notified when the caller's deadline passes.
        left_s, options = options.time_left_s, replace(options, time_left_s=None)
        passes: set[_Pass] = set()
        _PASSES.set(passes)
        try:
            async with time_limit(left_s) as limit:
                found = await self._predictor.predict(image_id, pixels, prompts, options)
        except TimeoutError:
            if not limit.expired():
                raise
            raise DeadlineExceeded("the deadline passed before the masks were decoded") from None
        if found is None:
            return None
        self._hits.observe(found.cache is not CacheTier.MISS, time.monotonic())
        timings = dict(found.timings_ms)
        if passes:
            timings["model"] = sum(seconds for _, seconds in passes) * 1e3
        return replace(found, load=self._load(), timings_ms=timings)

    def _load(self) -> ReplicaLoad:
        """Load of this replica by the requests of all ingress replicas, for the router."""
        decoder = self._batcher.load()
        oldest_s = decoder.oldest_s
        if self._images is not None:
            oldest_s = max(oldest_s, self._images.load().oldest_s)
        return ReplicaLoad(
            replica=self._name,
            images=self._predictor.encoding,
            prompts=decoder.waiting + decoder.running,
            oldest_ms=oldest_s * 1e3,
        )

    async def _decode(self, jobs: Sequence[DecodeJob]) -> list[tuple[Mask, ...]]:
        decoded = await self._batcher.run_all(jobs, until())
        _PASSES.get().update(timing for _, timing in decoded)
        return [masks for masks, _ in decoded]

    def record_autoscaling_stats(self) -> dict[str, float]:
        """Called by Serve for `serve_app.deployments.autoscaling`; items are prompts."""
        now = time.monotonic()
        found = {**self._batcher.report(), **self._hits.report(now)}
        if self._images is not None:
            # Encoder and decoder scale together: the one with the longer wait is the bottleneck.
            found["oldest_s"] = max(found["oldest_s"], self._images.report()["oldest_s"])
        return found

    async def ping(self) -> bool:
        """Return once the weights of decoder and encoder are loaded."""
        return self._encoder is None or bool(await await_response(self._encoder.ping.remote()))
