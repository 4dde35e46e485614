"""Loads the engines of registry models, of any family.

`ModelSource` is the only place that creates engines.  Tests pass a subclass with other ``load_``
methods.
"""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from serve_app.core.errors import WeightsUnavailable
from serve_app.core.inference import DecodeJob, DecodeOptions, Embedding
from serve_app.core.ports import (
    DecoderEngine,
    EncoderEngine,
    ProposalsEngine,
    TextScoringEngine,
)
from serve_app.core.settings import Compute, GraphSettings, ProposalsSettings, TextSettings
from serve_app.core.types import Prompt
from serve_app.engines.family import TextScoring, Weights
from serve_app.models.families import text_families
from serve_app.models.quantized import open_registry
from serve_app.models.registry import ModelSpec, Registry
from serve_app.models.weights import WeightStore

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ModelSource:
    """The registry, weights and engines of one configuration.

    Attributes:
        registry_path: a registry file; None: the packaged one.
        weights_dir: where weights are stored; None: the user's cache.
        offline: never fetch.
    """

    registry_path: str | None = None
    weights_dir: str | None = None
    offline: bool = False

    @classmethod
    def of(cls, settings: GraphSettings) -> ModelSource:
        """The source that the settings configure."""
        return cls(settings.registry, settings.weights_dir, settings.offline)

    @cached_property
    def registry(self) -> Registry:
        return open_registry(self.registry_path, self.store.root)

    @cached_property
    def store(self) -> WeightStore:
        return WeightStore(self.weights_dir, self.offline)

    def spec(self, model: str) -> ModelSpec:
        """The registry's entry of a model."""
        return self.registry.get(model)

    def weights(self, model: str, offline: bool = False) -> Weights:
        """A model's verified files, fetched if missing unless ``offline``.

        Raises:
            WeightsUnavailable: no source provided them.
        """
        spec = self.spec(model)
        store = WeightStore(self.store.root, offline=True) if offline else self.store
        paths = store.ensure(model, spec)
        return Weights(spec.architecture, spec.weights_hash, paths, self.store.root / "graphs")

    def load_encoder(self, model: str, compute: Compute) -> EncoderEngine:
        """Load the encoder of a segmentation model onto its device.

        Raises:
            ValueError: the model does not segment, or has no engine for the device.
            WeightsUnavailable: no source provided its files.
        """
        spec = self.spec(model)
        load = spec.segmentation.load_encoder
        return load(self.weights(model), spec.engine(compute), compute)

    def load_decoder(self, model: str, compute: Compute) -> DecoderEngine:
        """Load prompt encoder and mask decoder of a segmentation model; run them on an empty image.

        Raises:
            ValueError: the model does not segment.
            WeightsUnavailable: no source provided its files.
        """
        segmentation = self.spec(model).segmentation
        decoder = segmentation.load_decoder(self.weights(model), compute)
        # The first pass takes many times as long as later ones.
        shapes = segmentation.embedding_shapes.items()
        tensors = {name: np.zeros(shape, np.float32) for name, shape in shapes}
        box = Prompt(box=np.array([8, 8, 56, 56], np.float32))
        empty = Embedding(tensors, height=64, width=64)
        decoder.decode_batch([DecodeJob(empty, box, DecodeOptions())])
        return decoder

    def warm_up_sizes(self, model: str, compute: Compute, most: int) -> tuple[int, ...]:
        """Batch sizes, up to ``most``, that an encoder should run once before its first request."""
        spec = self.spec(model)
        return spec.segmentation.warm_up_sizes(spec.engine(compute), most)

    def load_proposals(self, settings: ProposalsSettings) -> ProposalsEngine:
        """Load the sources of candidate regions, with the configured detector; run it once.

        Raises:
            ValueError: the model does not detect objects.
            WeightsUnavailable: no source provided its files, or they cannot be loaded.
        """
        from serve_app.engines.proposals import Proposals

        model = settings.detector
        if model is None:
            return Proposals(None)
        load = self.spec(model).description.load_detector
        if load is None:
            raise ValueError(f"{model} does not detect objects")
        detector = load(self.weights(model), settings.threads)
        # The first pass allocates and takes longer than the others.
        detector.detect(np.zeros((64, 64, 3), np.uint8))
        return Proposals(detector)

    def load_text(self, settings: TextSettings) -> TextScoringEngine:
        """Load the engine that ``settings.engine`` names; its ``info.reason`` says why.

        ``auto`` uses the first family that has its weights on this machine and loads; otherwise the
        last one.  It downloads nothing for the others: hundreds of megabytes would delay the start
        of a replica.  Only the libraries of families that are tried are imported.

        Raises:
            WeightsUnavailable: for the configured engine, or for the last one with ``auto``.
        """
        started = time.monotonic()
        engine, reason = self._text_engine(settings)
        engine.info = replace(engine.info, reason=reason)
        loaded_s, chosen = time.monotonic() - started, f"{engine.info.engine} ({engine.info.model})"
        log.info("text engine: %s, %s; loaded in %.1f s", chosen, reason, loaded_s)
        return engine

    def _text_engine(self, settings: TextSettings) -> tuple[TextScoringEngine, str]:
        *preferred, last = text_families(settings)
        if settings.engine != "auto":
            return self._load_text(last, settings, self.offline), "configured"
        skipped = []
        for text in preferred:
            try:
                return self._load_text(text, settings, offline=True), "auto: its weights load"
            except WeightsUnavailable as exc:
                skipped.append(f"no {text.engine}, {exc.message}")
        return self._load_text(last, settings, self.offline), f"auto: {'; '.join(skipped)}"

    def _load_text(
        self, text: TextScoring, settings: TextSettings, offline: bool
    ) -> TextScoringEngine:
        model = text.model(settings)
        weights = None if model is None else self.weights(model, offline)
        return text.load(weights, settings, offline)
