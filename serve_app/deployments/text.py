"""Text scoring replicas: regions and texts in, calibrated scores out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from serve_app.batching.engine_thread import EngineThread
from serve_app.core.inference import Candidate, ScorerInfo, TextScores
from serve_app.core.settings import TextSettings
from serve_app.core.types import RgbArray
from serve_app.deployments.replica import EngineReplica
from serve_app.models.factory import ModelSource


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
