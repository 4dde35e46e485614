"""The ``labels`` engine: a detector's labels matched to texts by sentence embeddings.

Source of the embeddings: Reimers and Gurevych, "Sentence-BERT", EMNLP 2019; the model
``all-MiniLM-L6-v2`` of the sentence-transformers project.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from serve_app.core.errors import WeightsUnavailable
from serve_app.core.inference import Candidate, ScorerInfo, TextScores
from serve_app.core.settings import LabelsSettings
from serve_app.core.types import Float32Array, ProposalSource, RgbArray, UnknownText
from serve_app.engines.devices import use_threads
from serve_app.engines.phrases import Phrase, normalize, read, singulars, unreadable
from serve_app.engines.sentence_transformer.lexicon import (
    ANIMAL_FORMS,
    CONTAINERS,
    GROUPS,
    LOOSE,
    OTHER_COMPOUNDS,
    labels_by_noun,
)
from serve_app.engines.sentence_transformer.vocabulary import (
    COCO_GROUPS,
    COCO_NAMES,
    OTHER_THINGS,
    names_of,
)
from serve_app.engines.text_embeddings import EmbeddingLru
from serve_app.engines.words import IMITATIONS, is_attribute

VOCABULARY = UnknownText(
    reason="vocabulary",
    message="the engine knows the names in `text.vocabulary` of GET /v1/models, their synonyms and "
    "kinds; the text, read as an English phrase, names nothing else",
)

CONFIRMED = 0.8
"""Least P(label matches text) of a phrase like "farm horse", in which a noun precedes the name."""


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


CALIBRATION = MatchCalibration(own=36.94, other=-30.86, bias=-4.07)
"""Fitted by ``python -m serve_tools.workshop.calibrate_labels`` on 19,440 pairs of words and COCO
labels.  At 0.5, cross-validated over words, 93 % of the pairs that match are accepted and 0.15 %
of those that do not; 16 % of unrelated words are taken for at least one of the 80 labels."""

_OWNERS = frozenset({frozenset({"person"}), frozenset({"dog"}), frozenset({"cat"})})
"""Whose things are things of their own: "the dog's bowl", but not "the car's seat"."""

_ANIMALS = frozenset(COCO_GROUPS["animal"])

OBJECTNESS_MIDPOINT = 0.3
OBJECTNESS_SLOPE = 12.0
"""The factor of a detection is ``sigmoid(slope * (score - midpoint))``: detections of this
model are more often right than wrong from a score of about 0.3 on.  Chosen, not fitted."""


class LabelsScorer:
    """Scores candidates by their labels; pixels are not used.

    A score is a factor of the candidate's objectness, 0-1, where its label is what the text
    names, and else 0.  The text is read as a phrase (`labels_of`); of what names no label the
    engine cannot say that it is absent: it is `unknown`.  The documented threshold of 0.5 is
    reached from a detector score of 0.3 on.

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
        self._names = settings.names or tuple(COCO_NAMES)
        self._nouns = labels_by_noun(self._names)
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
            vocabulary=self._names,
        )

    def unknown(self, texts: Sequence[str]) -> tuple[UnknownText | None, ...]:
        """See `TextScorer.unknown`."""
        read = [self.labels_of(text) for text in texts]
        return tuple(labels if isinstance(labels, UnknownText) else None for labels in read)

    def labels_of(self, text: str) -> frozenset[str] | UnknownText:
        """The labels that a text names, or why it names none.

        A phrase names what its last noun does: the longest name at its end.  Adjectives before it
        change nothing; another noun before it may ("sea horse", "car seat"), so the embedding of
        the whole phrase must say the same as the name.
        """
        if (problem := unreadable(text)) is not None:
            return problem
        if (labels := self._named(normalize(text).replace("'", " ").split())) is not None:
            return labels
        phrase = read(text)
        if isinstance(phrase, UnknownText):
            return phrase
        return self._labels_of(phrase) or VOCABULARY

    def _labels_of(self, phrase: Phrase) -> frozenset[str] | None:
        words = phrase.words
        whole = self._named(words)
        if phrase.owner and self._named(phrase.owner[-1:]) not in _OWNERS:
            return None
        if phrase.related and not (whole and whole <= CONTAINERS):
            return None
        if whole is not None:
            return whole
        described = all(is_attribute(word) for word in words[:-1])
        if ANIMAL_FORMS & {*singulars(words[-1])} and not described:
            animals = self._labels_of(Phrase(words[:-1]))
            return animals if animals and animals <= _ANIMALS else None
        for start in range(1, len(words)):
            before, head = words[:start], words[start:]
            labels = self._named(head)
            if labels is None:
                continue
            if IMITATIONS & {*before} or OTHER_COMPOUNDS & {*_spelled((before[-1], *head))}:
                return None
            if all(is_attribute(word) for word in before):
                return labels
            if LOOSE.union(GROUPS) & {*_spelled(head)}:
                return None
            return labels if self._confirms(words, labels) else None
        return None

    def _named(self, words: Sequence[str]) -> frozenset[str] | None:
        """The labels of a noun that is in the lexicon as it is, in singular or plural."""
        if not words:
            return None
        forms = ((*words[:-1], last) for last in singulars(words[-1]))
        return next((self._nouns[form] for form in forms if form in self._nouns), None)

    def _confirms(self, words: Sequence[str], labels: frozenset[str]) -> bool:
        own, other = self.similarities([" ".join(words)], self._names)
        matches = CALIBRATION.probability(own, other)[0]
        best = int(matches.argmax())
        return self._names[best] in labels and bool(matches[best] >= CONFIRMED)

    def score(
        self, pixels: RgbArray, candidates: Sequence[Candidate], texts: Sequence[str]
    ) -> TextScores:
        """See `TextScoringEngine.score`; candidates have a detector's labels and objectness."""
        scores = np.zeros((len(texts), len(candidates)), np.float32)
        for i, text in enumerate(texts):
            labels = self.labels_of(text)
            if not isinstance(labels, UnknownText):
                for j, candidate in enumerate(candidates):
                    if candidate.label in labels:
                        scores[i, j] = objectness_factor(candidate.objectness)
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


def _spelled(words: Sequence[str]) -> list[str]:
    """The words as one string, in singular and plural."""
    return [" ".join((*words[:-1], last)) for last in singulars(words[-1])]


def objectness_factor(objectness: float) -> float:
    """Probability that a detection with this score is correct, 0-1."""
    return float(sigmoid(np.array(OBJECTNESS_SLOPE * (objectness - OBJECTNESS_MIDPOINT))))


def sigmoid(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """The logistic function, without overflow."""
    return np.asarray(1 / (1 + np.exp(-np.clip(x, -60, 60))), np.float64)
