"""Text scoring replicas: regions and texts in, calibrated scores out."""

from __future__ import annotations

from collections.abc import Sequence

from serve_app.compute.engines import ModelSource, load_text
from serve_app.deployments.replica import EngineReplica, EngineThread
from serve_app.domain.settings import TextSettings
from serve_app.domain.types import Candidate, RgbArray, ScorerInfo, TextScores


class TextReplica(EngineReplica):
    """One scoring engine, `open_clip` or `labels`, chosen when the replica starts."""

    def __init__(self, settings: TextSettings, source: ModelSource) -> None:
        super().__init__(settings)
        self._engine = load_text(source, settings)
        self._thread = EngineThread()
        self.threads = [self._thread]

    async def info(self) -> ScorerInfo:
        """The engine in use."""
        return self._engine.info

    async def score(
        self, pixels: RgbArray, candidates: Sequence[Candidate], texts: Sequence[str]
    ) -> TextScores:
        """See `serve_app.ports.TextScorer.score`."""
        return await self._thread.run(self._engine.score, pixels, candidates, texts)
