"""Replicas with an engine: image encoder, proposals, text scoring; stateless.

`serve_app.deployments.decoder` has the one that also has a cache.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from serve_app.batching.batcher import Batcher
from serve_app.batching.engine_thread import EngineThread
from serve_app.core.inference import Candidate, Embedding, Proposal, ScorerInfo, TextScores
from serve_app.core.settings import (
    Batching,
    Compute,
    EncoderSettings,
    ProposalsSettings,
    Replicas,
    TextSettings,
)
from serve_app.core.types import ProposalSource, RgbArray, UnknownText
from serve_app.deployments.telemetry import join_serve_log, start_telemetry
from serve_app.models.factory import ModelSource

_WARM_UP_SIDE = 64


class EngineReplica:
    """A replica that is unhealthy when a forward pass hangs or its GPU is broken.

    Attributes:
        threads, devices: Those of its engines.
    """

    def __init__(self, settings: Replicas) -> None:
        join_serve_log()
        start_telemetry()
        self.threads: list[EngineThread] = []
        self.devices: set[str] = set()
        self._max_pass_s = settings.max_pass_s

    async def ping(self) -> bool:
        """Return once the constructor has loaded and run the models."""
        return True

    async def check_health(self) -> None:
        """Called by Serve, which replaces the replica when this hangs or raises three times."""
        for thread in self.threads:
            await thread.check(self._max_pass_s, self._touch)

    def _touch(self) -> None:
        """Raise if a CUDA context is broken: only a new process helps then."""
        if gpus := self.devices - {"cpu"}:
            from serve_app.engines.devices import touch  # loads torch

            for device in gpus:
                touch(device)


class EncoderReplica(EngineReplica):
    """One variant's image encoder, which batches the images of all requests."""

    def __init__(self, model: str, settings: EncoderSettings, source: ModelSource) -> None:
        super().__init__(settings)
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
        return self._batcher.report()


def warm_encoder(
    source: ModelSource, model: str, compute: Compute, batching: Batching
) -> Batcher[RgbArray, Embedding]:
    """Load an encoder and run it once per batch size, which allocates memory and tunes kernels."""
    engine = source.load_encoder(model, compute)
    black = np.zeros((_WARM_UP_SIDE, _WARM_UP_SIDE, 3), dtype=np.uint8)
    for size in source.warm_up_sizes(model, compute, batching.max_batch_size):
        engine.encode_batch([black] * size)
    return Batcher(engine.encode_batch, batching, "images")


class ProposalsReplica(EngineReplica):
    """All sources of candidate regions: grid, detector and contours."""

    def __init__(self, settings: ProposalsSettings, source: ModelSource) -> None:
        super().__init__(settings)
        self._engine = source.load_proposals(settings)
        self._thread = EngineThread()
        self.threads = [self._thread]

    async def propose(
        self,
        pixels: RgbArray | None,
        size: tuple[int, int],
        source: ProposalSource,
        points_per_side: int,
    ) -> tuple[Proposal, ...]:
        """See `serve_app.core.ports.Proposer.propose`."""
        return await self._thread.run(self._engine.propose, pixels, size, source, points_per_side)


class TextReplica(EngineReplica):
    """One text scoring engine, chosen when the replica starts."""

    def __init__(self, settings: TextSettings, source: ModelSource) -> None:
        super().__init__(settings)
        self._batch_size = settings.open_clip.batch_size
        self._engine = source.load_text(settings)
        self._thread = EngineThread()
        self.threads = [self._thread]
        self.devices = {self._engine.device}

    async def info(self) -> ScorerInfo:
        """The engine in use."""
        return self._engine.info

    async def unknown(self, texts: Sequence[str]) -> tuple[UnknownText | None, ...]:
        """See `serve_app.core.ports.TextScorer.unknown`."""
        return await self._thread.run(self._engine.unknown, texts)

    async def score(
        self, pixels: RgbArray, candidates: Sequence[Candidate], texts: Sequence[str]
    ) -> TextScores:
        """See `serve_app.core.ports.TextScorer.score`."""
        # In parts: between them other requests run, a cancellation takes effect, and the health
        # check sees progress.
        parts = [
            await self._thread.run(self._engine.score, pixels, part, texts)
            for part in (
                candidates[start : start + self._batch_size]
                for start in range(0, max(1, len(candidates)), self._batch_size)
            )
        ]
        return replace(parts[0], scores=np.concatenate([p.scores for p in parts], axis=1))
