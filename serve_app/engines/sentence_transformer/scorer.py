"""The ``labels`` engine: a detector's labels matched to texts by sentence embeddings.

Source of the embeddings: Reimers and Gurevych, "Sentence-BERT", EMNLP 2019; the model
``all-MiniLM-L6-v2`` of the sentence-transformers project.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from serve_app.core.errors import WeightsUnavailable
from serve_app.core.inference import Candidate, ScorerInfo, TextScores
from serve_app.core.settings import LabelsSettings
from serve_app.core.types import Float32Array, ProposalSource, RgbArray
from serve_app.engines.devices import use_threads
from serve_app.engines.sentence_transformer.vocabulary import COCO_NAMES, OTHER_THINGS, names_of
from serve_app.engines.text_embeddings import EmbeddingLru

_LEAD_IN = re.compile(
    r"^(?:(?:please|find|show|segment|select|me|us|(?:an? |the )?(?:photo|picture|image) of"
    r"|the|an?|all|any|some|every|each|this|that|these|those|my|your|of)\s+)+(?=\S)"
)


@dataclass(frozen=True, slots=True)
class MatchCalibration:
    """``P(label matches text) = sigmoid(own * a + other * b + bias)``.

    ``a`` is the greatest cosine of the text with a name of the label, ``b`` that with a name of
    anything else.
    """

    own: float
    other: float
    bias: float

    def probability(
        self, own: NDArray[np.float64], other: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        return sigmoid(self.own * own + self.other * other + self.bias)


CALIBRATION = MatchCalibration(own=36.96, other=-30.87, bias=-4.07)
"""Fitted by ``python -m serve_tools.workshop.calibrate_labels`` on 19,440 pairs of words and COCO
labels.  At 0.5, cross-validated over words, 93 % of the pairs that match are accepted and 0.15 %
of those that do not; 16 % of unrelated words are taken for at least one of the 80 labels."""

OBJECTNESS_MIDPOINT = 0.3
OBJECTNESS_SLOPE = 12.0
"""The factor of a detection is ``sigmoid(slope * (score - midpoint))``: detections of this
model are more often right than wrong from a score of about 0.3 on.  Chosen, not fitted."""


class LabelsScorer:
    """Scores candidates by their labels; pixels are not used.

    A score is P(label matches text) times a factor of the candidate's objectness, each 0-1; a
    candidate without a label scores 0.  From the documented threshold of 0.5 on, both must
    speak for it: a label that means the text, found with a detector score above 0.3.

    Args:
        sentence_model_dir: directory of the sentence model; no hub is used.
        settings: the threshold.
        threads: CPU threads of a pass.

    Raises:
        WeightsUnavailable: the directory holds no sentence model.
    """

    device = "cpu"

    def __init__(self, sentence_model_dir: Path, settings: LabelsSettings, threads: int) -> None:
        from sentence_transformers import SentenceTransformer
        from transformers.utils.logging import disable_progress_bar

        disable_progress_bar()  # type: ignore[no-untyped-call]
        if not (sentence_model_dir / "model.safetensors").is_file():
            raise WeightsUnavailable("the sentence model's directory holds no safetensors weights")
        self._threads = threads
        try:
            self._model = SentenceTransformer(
                str(sentence_model_dir),
                device="cpu",
                local_files_only=True,
                trust_remote_code=False,
                model_kwargs={"use_safetensors": True},
            )
        except (OSError, ValueError, KeyError, RuntimeError) as exc:
            raise WeightsUnavailable("the sentence model cannot be loaded") from exc
        self._settings = settings
        self._embed = EmbeddingLru(self._encode)
        contrast = {*OTHER_THINGS, *(n for label in COCO_NAMES for n in names_of(label))}
        self._contrast = tuple(sorted(contrast))
        self._contrast_embeddings = self._encode(self._contrast)
        self.info = ScorerInfo(
            engine="labels",
            model=settings.model,
            needs_masks=False,
            proposals=ProposalSource.DETECTOR,
            threshold=settings.threshold,
        )

    def score(
        self, pixels: RgbArray, candidates: Sequence[Candidate], texts: Sequence[str]
    ) -> TextScores:
        """See `TextScoringEngine.score`; candidates have a detector's labels and objectness."""
        labels = sorted({c.label for c in candidates if c.label is not None})
        scores = np.zeros((len(texts), len(candidates)), np.float32)
        if labels and texts:
            matches = CALIBRATION.probability(*self.similarities(texts, labels))
            row = {label: i for i, label in enumerate(labels)}
            for j, candidate in enumerate(candidates):
                if candidate.label is not None:
                    factor = objectness_factor(candidate.objectness)
                    scores[:, j] = matches[:, row[candidate.label]] * factor
        return TextScores(
            scores=scores, engine=self.info.engine, threshold=self._settings.threshold
        )

    def similarities(
        self, texts: Sequence[str], labels: Sequence[str]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Two ``(n_texts, n_labels) float64`` of cosines: with the label, with anything else."""
        of_texts = self._embed([normalize(text) for text in texts])
        with_others = of_texts @ self._contrast_embeddings.T
        own = np.empty((len(texts), len(labels)))
        other = np.empty_like(own)
        for j, label in enumerate(labels):
            names = names_of(label)
            own[:, j] = (of_texts @ self._embed(names).T).max(axis=1)
            is_other = np.isin(self._contrast, names, invert=True)
            other[:, j] = with_others[:, is_other].max(axis=1)
        return own, other

    def _encode(self, texts: Sequence[str]) -> Float32Array:
        use_threads(self._threads)
        encoded = self._model.encode(
            list(texts), normalize_embeddings=True, show_progress_bar=False, convert_to_numpy=True
        )
        return np.asarray(encoded, np.float32)


def normalize(text: str) -> str:
    """The noun phrase of a query: lower case, without articles and requests.

    ``"Find the red car!"`` becomes ``"red car"``.
    """
    plain = re.sub(r"\s+", " ", text.lower()).strip(" \t.,;:!?\"'")
    return _LEAD_IN.sub("", plain) or text.strip()


def objectness_factor(objectness: float) -> float:
    """Probability that a detection with this score is correct, 0-1."""
    return float(sigmoid(np.array(OBJECTNESS_SLOPE * (objectness - OBJECTNESS_MIDPOINT))))


def sigmoid(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """The logistic function, without overflow."""
    return np.asarray(1 / (1 + np.exp(-np.clip(x, -60, 60))), np.float64)
