"""The service in one process, without Ray: for the evaluation, notebooks and tests."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from serve_app.capabilities import load_capabilities
from serve_app.core.inference import (
    Candidate,
    DecodeJob,
    DecodeOptions,
    Embedding,
    Prediction,
    Proposal,
    ScorerInfo,
    TextScores,
)
from serve_app.core.ports import DecoderEngine, EncoderEngine, ProposalsEngine, TextScoringEngine
from serve_app.core.settings import GraphSettings, TextSettings, VariantSettings
from serve_app.core.types import Mask, Prompt, ProposalSource, RgbArray
from serve_app.embeddings.predictor import VariantPredictor
from serve_app.embeddings.tiers import TieredEmbeddingCache
from serve_app.flow.flow import SegmentationFlow
from serve_app.images.store import ImageStore
from serve_app.models.factory import ModelSource
from serve_app.profiles.plan import resolve

T = TypeVar("T")


class _EngineThread:
    """Runs blocking calls of an engine, one at a time, in a thread of its own."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="engine")

    async def run(self, function: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, function)


class LocalPredictor(_EngineThread):
    """`serve_app.core.ports.Predictor` over engines in this process, loaded at first use."""

    def __init__(
        self, variant: VariantSettings, settings: GraphSettings, source: ModelSource
    ) -> None:
        super().__init__()
        self._variant = variant
        self._source = source
        self._encoder: EncoderEngine | None = None
        self._decoder: DecoderEngine | None = None
        spec = source.spec(variant.model)
        self._predictor: VariantPredictor[RgbArray] = VariantPredictor(
            TieredEmbeddingCache(settings.cache.embedding_bytes),
            self._encode,
            self._decode,
            weights_hash=spec.weights_hash,
            preprocessing=spec.preprocessing,
            dtype=variant.encoder_compute.dtype,
            resize_mode=spec.segmentation.resize_mode,
        )

    async def predict(
        self,
        image_id: str,
        pixels: RgbArray | None,
        prompts: Sequence[Prompt],
        options: DecodeOptions,
    ) -> Prediction | None:
        return await self._predictor.predict(image_id, pixels, prompts, options)

    async def scale_from_zero(self) -> None:
        """Does nothing: the first request loads the engines."""

    async def _encode(self, pixels: RgbArray) -> Embedding:
        def encode() -> Embedding:
            if self._encoder is None:
                compute = self._variant.encoder_compute
                self._encoder = self._source.load_encoder(self._variant.model, compute)
            return self._encoder.encode_batch([pixels])[0]

        return await self.run(encode)

    async def _decode(self, jobs: Sequence[DecodeJob]) -> list[tuple[Mask, ...]]:
        def decode() -> list[tuple[Mask, ...]]:
            if self._decoder is None:
                compute = self._variant.decoder.compute
                self._decoder = self._source.load_decoder(self._variant.model, compute)
            return self._decoder.decode_batch(jobs)

        return await self.run(decode)


class LocalProposer(_EngineThread):
    """`serve_app.core.ports.Proposer` over an engine in this process, loaded at first use."""

    def __init__(self, settings: GraphSettings, source: ModelSource) -> None:
        super().__init__()
        self._settings = settings.proposals
        self._source = source
        self._engine: ProposalsEngine | None = None

    async def propose(
        self,
        pixels: RgbArray | None,
        size: tuple[int, int],
        source: ProposalSource,
        points_per_side: int,
    ) -> tuple[Proposal, ...]:
        def propose() -> tuple[Proposal, ...]:
            if self._engine is None:
                self._engine = self._source.load_proposals(self._settings)
            return self._engine.propose(pixels, size, source, points_per_side)

        return await self.run(propose)


class LocalTextScorer(_EngineThread):
    """`serve_app.core.ports.TextScorer` over an engine in this process, loaded at first use."""

    def __init__(self, settings: TextSettings, source: ModelSource) -> None:
        super().__init__()
        self._settings = settings
        self._source = source
        self._engine: TextScoringEngine | None = None

    async def info(self) -> ScorerInfo:
        return await self.run(lambda: self._loaded().info)

    async def score(
        self, pixels: RgbArray, candidates: Sequence[Candidate], texts: Sequence[str]
    ) -> TextScores:
        return await self.run(lambda: self._loaded().score(pixels, candidates, texts))

    def _loaded(self) -> TextScoringEngine:
        if self._engine is None:
            self._engine = self._source.load_text(self._settings)
        return self._engine


def build_local_service(
    settings: GraphSettings, variants: Sequence[str] | None = None
) -> SegmentationFlow:
    """Build the service of a configuration in this process.

    Args:
        settings: of the graph; placement, batching and autoscaling are ignored.
        variants: names of the variants to include; None: all.
    """
    plan = resolve(settings)
    settings, source = plan.settings, ModelSource.of(plan.settings)
    names = list(settings.variants) if variants is None else list(variants)
    predictors = {n: LocalPredictor(settings.variants[n], settings, source) for n in names}
    return SegmentationFlow(
        capabilities=load_capabilities(settings.capabilities),
        images=ImageStore(settings.limits, settings.cache.image_bytes),
        variants={name: plan.variants[name] for name in names},
        predictors=predictors,
        proposer=LocalProposer(settings, source),
        scorer=None if settings.text is None else LocalTextScorer(settings.text, source),
        dispatcher=plan.dispatcher(predictors, in_process=True),
        limits=settings.limits,
    )
