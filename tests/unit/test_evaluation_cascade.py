"""The fit of the cascade's rules: it finds what is there, and nothing where there is nothing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import inf

import numpy as np
import pytest
from numpy.typing import NDArray

from serve_tools.evaluation.cascade import (
    FEWEST_IMAGES,
    FEWEST_OBJECTS,
    Judged,
    Pair,
    curve,
    fit_additive,
    fit_escalation,
    judge,
)

pytestmark = pytest.mark.slow

Floats = NDArray[np.float64]


@pytest.fixture(autouse=True)
def _quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fewer folds and stumps find the same, less exactly."""
    monkeypatch.setattr("serve_tools.evaluation.cascade._FOLDS", 5)
    monkeypatch.setattr("serve_tools.evaluation.cascade._STUMPS", 60)


def planted(
    ious: Callable[[np.random.Generator, Floats], tuple[Floats, Floats]],
    images: int = 30,
    each: int = 10,
    seed: int = 0,
) -> list[Pair]:
    """Pairs whose IoUs are made of a score in 0-1 that the first answer tells."""
    rng = np.random.default_rng(seed)
    image = np.repeat(np.arange(images), each)
    score = rng.uniform(0, 1, len(image))
    first, second = ious(rng, score)
    noise = rng.uniform(0, 1, len(image))
    return [
        Pair(
            form="box-1",
            image=int(image[i]),
            first={"score": float(score[i]), "stability": float(noise[i])},
            first_iou=float(first[i]),
            second={"score": 0.5, "stability": float(noise[i])},
            second_iou=float(second[i]),
        )
        for i in range(len(image))
    ]


def unsure_below_a_quarter(rng: np.random.Generator, score: Floats) -> tuple[Floats, Floats]:
    """Below a score of 0.25 the first answer is bad, beyond it the better one."""
    first = np.where(score < 0.25, 0.4, 0.9) + rng.normal(0, 0.03, len(score))
    return first, np.full(len(score), 0.85)


def judged(gains: Sequence[float], estimates: Sequence[float]) -> Judged:
    gain, estimate = np.array(gains), np.array(estimates)
    zero = np.zeros(len(gain))
    return Judged(np.arange(len(gain)), zero, gain, zero, gain, gain, estimate)


# Additive estimates.


def test_an_estimate_reproduces_sklearns_own_predictions() -> None:
    from sklearn.ensemble import GradientBoostingRegressor

    rng = np.random.default_rng(2)
    table = rng.uniform(0, 1, (200, 3))
    target = np.sin(5 * table[:, 0]) + (table[:, 1] > 0.4) + rng.normal(0, 0.1, 200)
    names = ("b", "a", "c")
    rows = [dict(zip(names, row.tolist(), strict=True)) for row in table]
    found = fit_additive(rows, target, seed=7)
    order = [names.index(name) for name in sorted(names)]
    model = GradientBoostingRegressor(
        n_estimators=60,
        learning_rate=0.1,
        max_depth=1,
        subsample=0.7,
        min_samples_leaf=3,
        random_state=7,
    ).fit(table[:, order], target)
    theirs = model.predict(table[:, order])
    np.testing.assert_allclose([found(row) for row in rows], theirs, atol=1e-4)
    assert np.corrcoef(theirs, target)[0, 1] > 0.95


def test_a_feature_that_says_nothing_leaves_the_mean() -> None:
    found = fit_additive([{"score": 0.5}] * 20, np.linspace(0, 1, 20), seed=0)
    assert found.steps == {}
    assert found({"score": 0.5}) == pytest.approx(0.5, abs=0.1)


# Cross-validation.


def test_estimates_of_random_labels_are_worth_nothing() -> None:
    """As a fit on the same items would be: that one learns their noise."""

    def random(rng: np.random.Generator, score: Floats) -> tuple[Floats, Floats]:
        first, second = rng.uniform(0, 1, (2, len(score)))
        return first, second

    honest, in_sample = [], []
    for seed in range(6):
        pairs = planted(random, seed=seed)
        found = judge(pairs)
        gain = found.kept_iou - found.first_iou
        honest.append(np.corrcoef(found.expected_gain, gain)[0, 1])
        model = fit_additive([p.first for p in pairs], gain, seed=0)
        in_sample.append(np.corrcoef([model(p.first) for p in pairs], gain)[0, 1])
    assert min(in_sample) > 0.2
    assert abs(np.mean(honest)) < 0.1


def test_an_image_is_judged_by_models_that_have_not_seen_it() -> None:
    """Images that gain by chance must not teach the estimates of their own prompts."""
    rng = np.random.default_rng(1)
    gain = rng.choice([0.0, 0.4], 40)
    pairs = [
        Pair(
            form="box-1",
            image=image,
            # By its brightness, say, an image is recognised among all others.
            first={"score": image / 40},
            first_iou=0.5,
            second={"score": image / 40},
            second_iou=0.5 + float(gain[image]),
        )
        for image in range(40)
        for _ in range(8)
    ]
    found = judge(pairs)
    known = np.corrcoef(found.expected_second, found.second_iou)[0, 1]
    assert known < 0.4
    # Had they been seen:
    model = fit_additive([p.second for p in pairs], found.second_iou, seed=0)
    assert np.corrcoef([model(p.second) for p in pairs], found.second_iou)[0, 1] > 0.6


def test_the_same_seed_gives_the_same_rules() -> None:
    pairs = planted(unsure_below_a_quarter, images=8)
    assert fit_escalation(pairs) == fit_escalation(pairs)


# Curves.


def test_a_curve_asks_the_most_promising_first() -> None:
    found = judged(gains=[0.1, 0.3, -0.2, 0.2], estimates=[0.2, 0.4, -0.1, 0.3])
    points = curve(found, np.arange(4))
    assert [p.share for p in points] == [0.25, 0.5, 0.75, 1]
    assert [p.threshold for p in points] == [0.4, 0.3, 0.2, -0.1]
    # What should lose by it is left as it is, also where all are asked.
    assert [p.gain for p in points] == pytest.approx([0.075, 0.125, 0.15, 0.15])


def test_a_curve_counts_requests_not_prompts() -> None:
    found = judged(gains=[0.1, 0.3, 0.2, 0.2], estimates=[0.1, 0.3, 0.3, 0.3])
    points = curve(found, np.array([7, 7, 9, 9]))
    assert [(p.share, p.threshold) for p in points] == [
        (0.5, 0.3),
        (1, pytest.approx(0.2)),
    ]
    assert [p.gain for p in points] == pytest.approx([0.1, 0.2])


def test_equal_estimates_pass_a_threshold_together() -> None:
    found = judged(gains=[0.1] * 10, estimates=[0.3, *[0.2] * 9])
    points = curve(found, np.arange(10))
    assert [(p.threshold, p.share) for p in points] == [(0.3, 0.1), (0.2, 1)]


def test_every_point_holds_what_its_threshold_lets_pass() -> None:
    rng = np.random.default_rng(5)
    # Exact in binary, so that equal means are equal.
    estimates = rng.integers(-5, 20, 200) / 64
    found = judged(rng.normal(estimates, 0.2).tolist(), estimates.tolist())
    requests = np.sort(np.concatenate([np.arange(120), np.repeat(np.arange(120, 160), 2)]))
    points = curve(found, requests)
    shares = [p.share for p in points]
    assert shares == sorted(shares)
    assert shares[-1] == 1
    assert [p.threshold for p in points] == sorted((p.threshold for p in points), reverse=True)
    names = np.unique(requests)
    for point in points:
        passed = [r for r in names if estimates[requests == r].mean() >= point.threshold]
        assert point.share == pytest.approx(len(passed) / len(names))
        asked = np.isin(requests, passed) & (estimates > 0)
        assert point.gain == pytest.approx(found.kept_iou[asked].sum() / 200)


# The rules.


def test_a_gain_that_can_be_foreseen_is_found() -> None:
    found = fit_escalation(planted(unsure_below_a_quarter))
    assert found is not None
    assert found.first_iou == pytest.approx(0.775, abs=0.02)
    assert found.second_iou == pytest.approx(0.85)
    low, high = found.gain({"score": 0.1}), found.gain({"score": 0.8})
    assert low == pytest.approx(0.45, abs=0.08)
    assert high < 0.05
    assert found.first({"score": 0.1}) == pytest.approx(0.4, abs=0.08)
    assert found.second({"score": 0.1}) == pytest.approx(0.85, abs=0.02)
    # A quarter of prompts that come alone brings all that is to be gained: 0.25 times 0.45.
    best = max((p for p in found.single if p.share <= 0.3), key=lambda p: p.gain)
    assert best.gain == pytest.approx(0.25 * 0.45, rel=0.15)
    threshold = found.threshold(0.2, alone=True)
    assert high < threshold < low + 0.1
    # Together, each image has some of both: no image is much more worth it than others.
    assert max(p.gain for p in found.curve if p.share <= 0.3) < 0.6 * best.gain


def test_choosing_gains_more_than_the_second_alone() -> None:
    found = fit_escalation(planted(unsure_below_a_quarter))
    assert found is not None
    assert max(p.gain for p in found.curve) > 1.2 * (found.second_iou - found.first_iou)


def test_of_two_answers_the_one_expected_to_be_better_is_kept() -> None:
    """Here the second one says itself when it is bad, which the first one cannot foresee."""
    rng = np.random.default_rng(3)
    sure = rng.uniform(0, 1, 200)
    pairs = [
        Pair(
            form="box-1",
            image=i // 10,
            first={"score": 0.5},
            first_iou=0.6,
            second={"score": float(sure[i])},
            second_iou=0.9 if sure[i] > 0.5 else 0.2,
        )
        for i in range(200)
    ]
    found = judge(pairs)
    best = np.maximum(found.first_iou, found.second_iou)
    assert found.kept_iou.mean() == pytest.approx(best.mean(), abs=0.02)
    np.testing.assert_allclose(found.expected_gain, (best - 0.6).mean(), atol=0.05)


@pytest.mark.parametrize(
    "ious",
    [
        lambda rng, score: (np.full(len(score), 0.8), np.full(len(score), 0.8)),
        lambda rng, score: (rng.uniform(0.6, 0.9, len(score)), np.full(len(score), 0.5)),
    ],
    ids=["equal", "worse"],
)
def test_where_nothing_is_to_be_gained_the_threshold_is_infinite(
    ious: Callable[[np.random.Generator, Floats], tuple[Floats, Floats]],
) -> None:
    found = fit_escalation(planted(ious, images=10))
    assert found is not None
    for share in (0.1, 0.4, 1.0):
        assert found.threshold(share, alone=True) == found.threshold(share, alone=False) == inf


def test_too_little_data_gives_no_rules() -> None:
    few = planted(unsure_below_a_quarter, images=FEWEST_IMAGES - 1, each=20)
    assert len(few) >= FEWEST_OBJECTS
    assert fit_escalation(few) is None
    few = planted(unsure_below_a_quarter, images=FEWEST_IMAGES, each=9)
    assert len(few) < FEWEST_OBJECTS
    assert fit_escalation(few) is None
    enough = planted(unsure_below_a_quarter, images=FEWEST_IMAGES, each=10)
    assert fit_escalation(enough) is not None
    assert fit_escalation([]) is None
