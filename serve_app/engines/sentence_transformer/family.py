"""The family ``sentence_transformer``: labels of a detector are compared with texts."""

from __future__ import annotations

import logging
from typing import cast

from serve_app.core.ports import TextScoringEngine
from serve_app.core.settings import TextSettings
from serve_app.engines.family import Family, TextScoring, Weights

log = logging.getLogger(__name__)


def _load(weights: Weights | None, settings: TextSettings, offline: bool) -> TextScoringEngine:
    from serve_app.engines.sentence_transformer.scorer import LabelsScorer

    if settings.compute.device != "cpu":
        log.warning("the labels engine runs on the CPU; its share of a GPU is not used")
    # `model` below always names one.
    folder = cast(Weights, weights).paths["config"].parent
    return LabelsScorer(folder, settings.labels, settings.compute.threads)


SENTENCE_TRANSFORMER = Family(
    name="sentence_transformer",
    file_keys=None,
    text=TextScoring(engine="labels", model=lambda settings: settings.labels.model, load=_load),
)
