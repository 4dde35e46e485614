"""Fits the cascade's rules on annotated objects, and estimates their gain.

All figures of a curve are cross-validated over images: an image's prompts are evaluated by models
that were fitted without it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from serve_app.core.measurements import Additive, Escalation, Point, PromptType, Steps

FEWEST_OBJECTS = 60
FEWEST_IMAGES = 6
"""With less data nothing is fitted: the cascade is then off for this form of prompt."""

_FOLDS = 10
_STUMPS = 150
_SHARES = tuple(k / 20 for k in range(1, 21))


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """One object under one form of prompt, segmented by both variants.

    Attributes:
        image: identifies the image.
        first, second: features of the masks (`serve_app.routing.cascade.features`).
        first_iou, second_iou: of the mask with the highest predicted IoU, with the truth.
    """

    form: PromptType
    image: int
    first: Mapping[str, float]
    first_iou: float
    second: Mapping[str, float]
    second_iou: float


@dataclass(frozen=True, slots=True)
class Judged:
    """Pairs of one form with predictions of models that were fitted without their image.

    Attributes:
        images: ``(n,)`` the image of each.
        first_iou, second_iou: ``(n,)`` true ones.
        expected_first, expected_second: ``(n,)`` IoUs.
        kept_iou: ``(n,)`` true IoU of the mask that would be kept after escalation.
        expected_gain: ``(n,)`` of escalating, predicted from the first variant's masks alone.
    """

    images: NDArray[np.int64]
    first_iou: NDArray[np.float64]
    second_iou: NDArray[np.float64]
    expected_first: NDArray[np.float64]
    expected_second: NDArray[np.float64]
    kept_iou: NDArray[np.float64]
    expected_gain: NDArray[np.float64]


def fit_escalation(pairs: Sequence[Pair], seed: int = 0) -> Escalation | None:
    """The rules for one form of prompt; None if there is too little data.

    Args:
        pairs: all of one form.
        seed: of the boosting's subsamples.
    """
    if len(pairs) < FEWEST_OBJECTS or len({p.image for p in pairs}) < FEWEST_IMAGES:
        return None
    judged = judge(pairs, seed)
    first, second = [p.first for p in pairs], [p.second for p in pairs]
    return Escalation(
        # The target is the gain after replacement, estimated by models fitted without the item.
        gain=fit_additive(first, judged.kept_iou - judged.first_iou, seed),
        first=fit_additive(first, judged.first_iou, seed),
        second=fit_additive(second, judged.second_iou, seed),
        curve=curve(judged, judged.images),
        single=curve(judged, np.arange(len(pairs))),
        first_iou=float(judged.first_iou.mean()),
        second_iou=float(judged.second_iou.mean()),
    )


def judge(pairs: Sequence[Pair], seed: int = 0) -> Judged:
    """Cross-validated estimates for pairs of one form."""
    images = np.array([p.image for p in pairs], np.int64)
    first, second = [p.first for p in pairs], [p.second for p in pairs]
    first_iou = np.array([p.first_iou for p in pairs])
    second_iou = np.array([p.second_iou for p in pairs])
    expected_first = _out_of_fold(first, first_iou, images, seed)
    expected_second = _out_of_fold(second, second_iou, images, seed)
    kept = np.where(expected_second > expected_first, second_iou, first_iou)
    gain = _out_of_fold(first, kept - first_iou, images, seed)
    return Judged(images, first_iou, second_iou, expected_first, expected_second, kept, gain)


def curve(judged: Judged, requests: NDArray[np.int64]) -> tuple[Point, ...]:
    """The gain by share of escalated requests.

    Args:
        requests: ``(n,)`` which request each prompt is part of: its image, or itself alone.
    """
    names, request = np.unique(requests, return_inverse=True)
    count = np.bincount(request)
    mean = np.bincount(request, judged.expected_gain) / count
    # Prompts with an expected loss keep the first variant's masks.
    gained = np.where(judged.expected_gain > 0, judged.kept_iou - judged.first_iou, 0.0)
    of_request = np.bincount(request, gained)
    order = np.argsort(-mean, kind="stable")
    total = np.cumsum(of_request[order]) / len(requests)
    # A threshold selects all requests with equal estimates, or none of them.
    lasts = np.flatnonzero(np.diff(mean[order], append=-np.inf))
    points = []
    for share in _SHARES:
        within = lasts[lasts + 1 <= share * len(names) + 1e-9]
        if within.size:
            last = int(within[-1])
            threshold = float(mean[order[last]])
            points.append(
                Point(threshold=threshold, share=(last + 1) / len(names), gain=total[last])
            )
    return tuple(dict.fromkeys(points))


def fit_additive(
    features: Sequence[Mapping[str, float]], target: NDArray[np.float64], seed: int
) -> Additive:
    """Boosted stumps, summed up to one step function for each feature."""
    from sklearn.ensemble import GradientBoostingRegressor

    names = sorted(features[0])
    table = np.array([[row[name] for name in names] for row in features])
    model = GradientBoostingRegressor(
        n_estimators=_STUMPS,
        learning_rate=0.1,
        max_depth=1,
        subsample=0.7,
        min_samples_leaf=max(3, len(target) // 100),
        random_state=seed,
    ).fit(table, target)
    stumps: dict[str, dict[float, float]] = {name: {} for name in names}
    intercept = float(model.init_.constant_.ravel()[0])
    for (stage,) in model.estimators_:
        tree = stage.tree_
        if tree.node_count == 1:  # no split was worth it
            intercept += model.learning_rate * float(tree.value[0, 0, 0])
            continue
        low, high = (float(tree.value[node, 0, 0]) * model.learning_rate for node in (1, 2))
        intercept += low
        jumps = stumps[names[tree.feature[0]]]
        edge = round(float(tree.threshold[0]), 6)
        jumps[edge] = jumps.get(edge, 0.0) + high - low
    steps = {}
    for name, jumps in stumps.items():
        if jumps:
            edges = sorted(jumps)
            values = np.concatenate([[0.0], np.cumsum([jumps[e] for e in edges])])
            steps[name] = Steps(edges=tuple(edges), values=tuple(np.round(values, 6).tolist()))
    return Additive(intercept=intercept, steps=steps)


def _out_of_fold(
    features: Sequence[Mapping[str, float]],
    target: NDArray[np.float64],
    images: NDArray[np.int64],
    seed: int,
) -> NDArray[np.float64]:
    """Each item's estimate by a model fitted without the images of its fold."""
    names = np.unique(images)
    fold_of = dict(
        zip(
            np.random.default_rng(seed).permutation(names).tolist(),
            (k % min(_FOLDS, len(names)) for k in range(len(names))),
            strict=True,
        )
    )
    fold = np.array([fold_of[i] for i in images.tolist()])
    found = np.zeros(len(target))
    for k in np.unique(fold):
        rest = np.flatnonzero(fold != k)
        model = fit_additive([features[int(i)] for i in rest], target[rest], seed)
        for i in map(int, np.flatnonzero(fold == k)):
            found[i] = model(features[i])
    return found
