"""Which text engine runs: the one that is configured, or the best whose weights load."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Protocol

from serve_app.core.errors import WeightsUnavailable
from serve_app.core.settings import OpenClipSettings, TextSettings
from serve_app.core.types import Candidate, RgbArray, ScorerInfo, TextScores

logger = logging.getLogger(__name__)


class TextScoringEngine(Protocol):
    """The computation behind a `TextScorer`: blocking, on one device."""

    info: ScorerInfo

    def score(
        self, pixels: RgbArray, candidates: Sequence[Candidate], texts: Sequence[str]
    ) -> TextScores:
        """Calibrated scores (0-1) of each text against each candidate of an upright image."""
        ...


def build_text_engine(
    settings: TextSettings,
    sentence_model_dir: Callable[[], Path],
    open_clip: Callable[[], OpenClipSettings] | None = None,
    offline: bool = False,
) -> TextScoringEngine:
    """Load the engine that ``settings.engine`` names; its ``info.reason`` says why.

    ``auto`` is ``open_clip`` where its weights are on this machine and load, and else
    ``labels``: it fetches nothing, since a replica that starts is no place for hundreds of
    megabytes.  Each engine's library takes seconds and hundreds of megabytes to import, so only
    what is tried is imported.

    Args:
        settings: of both engines.
        sentence_model_dir: gives the directory of the sentence model, fetched if need be;
            called only if ``labels`` is to be loaded.
        open_clip: gives the settings of ``open_clip`` with its weights found, fetched if need
            be; None: as they are in ``settings``.
        offline: ask no hub for weights.

    Raises:
        WeightsUnavailable: of the engine that is configured, or of ``labels`` with ``auto``.
    """
    started = time.monotonic()
    if settings.engine == "open_clip":
        engine, reason = _open_clip(settings, open_clip, offline), "configured"
    elif settings.engine == "labels":
        engine, reason = _labels(settings, sentence_model_dir), "configured"
    else:
        try:
            engine, reason = _open_clip(settings, open_clip, True), "auto: its weights load"
        except WeightsUnavailable as exc:
            engine = _labels(settings, sentence_model_dir)
            reason = f"auto: no open_clip, {exc.message}"
    engine.info = replace(engine.info, reason=reason)
    logger.info(
        "text engine: %s (%s), %s; loaded in %.1f s",
        engine.info.engine,
        engine.info.model,
        reason,
        time.monotonic() - started,
    )
    return engine


def _open_clip(
    settings: TextSettings, found: Callable[[], OpenClipSettings] | None, offline: bool
) -> TextScoringEngine:
    chosen = settings.open_clip if found is None else found()
    from serve_app.engines.text.open_clip import OpenClipScorer

    return OpenClipScorer(chosen, settings.compute, offline)


def _labels(settings: TextSettings, sentence_model_dir: Callable[[], Path]) -> TextScoringEngine:
    from serve_app.engines.text.labels import LabelsScorer

    if settings.compute.device != "cpu":
        logger.warning("the labels engine runs on the CPU; its share of a GPU lies idle")
    return LabelsScorer(sentence_model_dir(), settings.labels, settings.compute.threads)
