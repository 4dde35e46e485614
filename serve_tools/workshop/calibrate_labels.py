"""Fits the calibration of the ``labels`` engine.

Run with ``python -m serve_tools.workshop.calibrate_labels``.

Each word of `serve_tools.workshop.label_words` is compared with all 80 labels of COCO.  The pairs
that match are rare (about 1 in 100); each counts `MATCH_WEIGHT` times, since users query what is
likely to be in the picture.  Quality is estimated by cross-validation over words.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from serve_app.core.settings import LabelsSettings
from serve_app.engines.sentence_transformer.scorer import LabelsScorer, MatchCalibration, sigmoid
from serve_app.engines.sentence_transformer.vocabulary import COCO_NAMES
from serve_tools.workshop.label_words import MATCHES, UNRELATED

MATCH_WEIGHT = 4.0
FOLDS = 5


@dataclass(frozen=True, slots=True)
class Pairs:
    """Words against labels: ``(n_words, n_labels)`` cosines, and whether each pair matches."""

    own: NDArray[np.float64]
    other: NDArray[np.float64]
    matches: NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Quality:
    """Shares of decisions at a probability of 0.5.

    Attributes:
        recall: of the pairs that match, those accepted.
        false_pairs: of the pairs that do not, those accepted.
        false_words: of the unrelated words, those accepted for any label.
    """

    recall: float
    false_pairs: float
    false_words: float


def measure(scorer: LabelsScorer) -> Pairs:
    """Compare all words with all labels."""
    labels = tuple(COCO_NAMES)
    own, other = scorer.similarities((*MATCHES, *UNRELATED), labels)
    right = [*MATCHES.values(), *(() for _ in UNRELATED)]
    matches = np.array([[label in row for label in labels] for row in right], np.bool_)
    return Pairs(own, other, matches)


def fit(pairs: Pairs, match_weight: float = MATCH_WEIGHT) -> MatchCalibration:
    """Weighted maximum likelihood by Newton's method; a match counts ``match_weight`` times."""
    x = np.stack([pairs.own.ravel(), pairs.other.ravel(), np.ones(pairs.own.size)], axis=1)
    y = pairs.matches.ravel().astype(np.float64)
    weight = np.where(y > 0, match_weight, 1.0)
    ridge = 1e-3
    beta = np.zeros(3)
    for _ in range(100):
        p = sigmoid(x @ beta)
        gradient = x.T @ (weight * (y - p)) - ridge * beta
        hessian = (x * (weight * p * (1 - p))[:, None]).T @ x + ridge * np.eye(3)
        step = np.linalg.solve(hessian, gradient)
        beta += step
        if np.abs(step).max() < 1e-9:
            break
    return MatchCalibration(*(float(b) for b in beta))


def quality(pairs: Pairs) -> Quality:
    """Cross-validated over words."""
    accepted = np.zeros_like(pairs.matches)
    fold = np.arange(len(pairs.matches)) % FOLDS
    for i in range(FOLDS):
        rest, here = fold != i, fold == i
        fitted = fit(Pairs(pairs.own[rest], pairs.other[rest], pairs.matches[rest]))
        accepted[here] = fitted.probability(pairs.own[here], pairs.other[here]) > 0.5
    wrong = accepted & ~pairs.matches
    return Quality(
        recall=float(accepted[pairs.matches].mean()),
        false_pairs=float(wrong.sum() / (~pairs.matches).sum()),
        false_words=float(wrong[len(MATCHES) :].any(axis=1).mean()),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="Fit the calibration of the labels engine.")
    parser.add_argument("--model", type=Path, required=True, help="the sentence model's directory")
    arguments = parser.parse_args()
    pairs = measure(LabelsScorer(arguments.model, LabelsSettings(), threads=1))
    fitted, found = fit(pairs), quality(pairs)
    print(f"own={fitted.own:.2f}, other={fitted.other:.2f}, bias={fitted.bias:.2f}")
    print(
        f"matching pairs accepted {found.recall:.1%}, other pairs {found.false_pairs:.2%}, "
        f"unrelated words {found.false_words:.1%} ({pairs.own.size} pairs, {FOLDS} folds)"
    )


if __name__ == "__main__":
    main()
