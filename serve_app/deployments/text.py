"""Text scoring replicas: regions and texts in, calibrated scores out."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from serve_app.compute.engines import ModelSource
from serve_app.compute.text.engine import build_text_engine
from serve_app.domain.settings import TextSettings
from serve_app.domain.types import Candidate, RgbArray, ScorerInfo, TextScores


class TextReplica:
    """One scoring engine, `open_clip` or `labels`, chosen when the replica starts."""

    def __init__(self, settings: TextSettings, source: ModelSource) -> None:
        self._engine = build_text_engine(
            settings,
            lambda: source.files(settings.labels.model)["config"].parent,
            source.offline,
        )
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="engine")

    async def info(self) -> ScorerInfo:
        """The engine in use."""
        return self._engine.info

    async def score(
        self, pixels: RgbArray, candidates: Sequence[Candidate], texts: Sequence[str]
    ) -> TextScores:
        """See `serve_app.ports.TextScorer.score`."""
        return await asyncio.get_running_loop().run_in_executor(
            self._thread, self._engine.score, pixels, candidates, texts
        )
