"""The service in one process, without Ray: for the evaluation, notebooks and tests."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Generic, TypeVar

from serve_app.batching.engine_thread import EngineThread
from serve_app.capabilities import load_capabilities
from serve_app.core.inference import (
    Candidate,
    DecodeJob,
    Embedding,
    Proposal,
    ScorerInfo,
    TextScores,
)
from serve_app.core.settings import GraphSettings, ProposalsSettings, TextSettings, VariantSettings
from serve_app.core.types import Mask, ProposalSource, RgbArray, UnknownText
from serve_app.embeddings.predictor import VariantPredictor
from serve_app.embeddings.tiers import TieredEmbeddingCache
from serve_app.flow.flow import SegmentationFlow
from serve_app.images.store import ImageStore
from serve_app.models.factory import ModelSource
from serve_app.profiles.plan import resolve

E = TypeVar("E")
T = TypeVar("T")


class _LazyEngine(Generic[E]):
    """An engine that is loaded at first use; all its calls run in one thread."""

    def __init__(self, thread: EngineThread, load: Callable[[], E]) -> None:
        self._thread = thread
        self._loaded = cache(load)

    async def run(self, call: Callable[[E], T]) -> T:
        return await self._thread.run(lambda: call(self._loaded()))


class LocalPredictor(VariantPredictor[RgbArray]):
    """`serve_app.core.ports.Predictor` over engines in this process."""

    def __init__(
        self, variant: VariantSettings, settings: GraphSettings, source: ModelSource
    ) -> None:
        model, compute, thread = variant.model, variant.encoder_compute, EngineThread()
        encoder = _LazyEngine(thread, lambda: source.load_encoder(model, compute))
        decoder = _LazyEngine(thread, lambda: source.load_decoder(model, variant.decoder.compute))

        async def encode(pixels: RgbArray) -> Embedding:
            return (await encoder.run(lambda engine: engine.encode_batch([pixels])))[0]

        async def decode(jobs: Sequence[DecodeJob]) -> list[tuple[Mask, ...]]:
            return await decoder.run(lambda engine: engine.decode_batch(jobs))

        spec = source.spec(model)
        super().__init__(
            TieredEmbeddingCache(settings.cache.embedding_bytes),
            encode,
            decode,
            weights_hash=spec.weights_hash,
            preprocessing=spec.preprocessing,
            dtype=compute.dtype,
            resize_mode=spec.segmentation.resize_mode,
        )

    async def scale_from_zero(self) -> None:
        """Does nothing: the first request loads the engines."""


class LocalProposer:
    """`serve_app.core.ports.Proposer` over an engine in this process."""

    def __init__(self, settings: ProposalsSettings, source: ModelSource) -> None:
        self._engine = _LazyEngine(EngineThread(), lambda: source.load_proposals(settings))

    async def propose(
        self,
        pixels: RgbArray | None,
        size: tuple[int, int],
        source: ProposalSource,
        points_per_side: int,
    ) -> tuple[Proposal, ...]:
        return await self._engine.run(lambda e: e.propose(pixels, size, source, points_per_side))


class LocalTextScorer:
    """`serve_app.core.ports.TextScorer` over an engine in this process."""

    def __init__(self, settings: TextSettings, source: ModelSource) -> None:
        self._engine = _LazyEngine(EngineThread(), lambda: source.load_text(settings))

    async def info(self) -> ScorerInfo:
        return await self._engine.run(lambda engine: engine.info)

    async def unknown(self, texts: Sequence[str]) -> tuple[UnknownText | None, ...]:
        return await self._engine.run(lambda engine: engine.unknown(texts))

    async def score(
        self, pixels: RgbArray, candidates: Sequence[Candidate], texts: Sequence[str]
    ) -> TextScores:
        return await self._engine.run(lambda engine: engine.score(pixels, candidates, texts))


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
        proposer=LocalProposer(settings.proposals, source),
        scorer=None if settings.text is None else LocalTextScorer(settings.text, source),
        dispatcher=plan.dispatcher(predictors, in_process=True),
        limits=settings.limits,
    )
