"""Times passes: warmed up, interleaved, bounded, with a confidence interval."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

import numpy as np

from serve_app.core.measurements import Duration

K = TypeVar("K")

_RESAMPLES = 2000
_LEAST = 1e-3


def interleaved(
    passes: Mapping[K, Callable[[], object]],
    *,
    repeats: int,
    budget_s: float,
    seed: int,
    too_large: tuple[type[Exception], ...] = (),
    clock: Callable[[], float] = time.perf_counter,
) -> dict[K, list[float]]:
    """Milliseconds of each kind of pass, ``repeats`` times where the budget allows.

    The kinds take turns, in a new random order each round, so that a busy moment of the host
    does not fall on one of them alone.  The first pass of each is a warm-up and not counted,
    unless it alone used up the budget.

    Args:
        budget_s: no pass is begun once its kind has taken this long, warm-up included.
        too_large: errors after which a kind is skipped, such as too little memory.
    """
    rng = np.random.default_rng(seed)
    times: dict[K, list[float]] = {kind: [] for kind in passes}
    spent = dict.fromkeys(passes, 0.0)
    waiting = list(passes)
    warm: set[K] = set()
    while waiting:
        for index in rng.permutation(len(waiting)):
            kind = waiting[int(index)]
            start = clock()
            try:
                passes[kind]()
            except too_large:
                spent[kind] = budget_s
                times.pop(kind)
                continue
            took = clock() - start
            spent[kind] += took
            if kind in warm or took >= budget_s:
                times[kind].append(took * 1e3)
            warm.add(kind)
        waiting = [
            kind
            for kind in waiting
            if kind in times and len(times[kind]) < repeats and spent[kind] < budget_s
        ]
    return times


def duration(samples: Sequence[float], seed: int) -> Duration:
    """The median of times, with its 95 % percentile bootstrap interval from two samples on.

    With few samples the interval is nearly their range: it describes the spread within this run,
    not between runs.
    """
    values = np.asarray(samples, np.float64)
    # The clock may be too coarse, but figures must be positive.
    median = max(round(float(np.median(values)), 3), _LEAST)
    if len(values) < 2:
        return Duration(value=median)
    rng = np.random.default_rng(seed)
    drawn = rng.choice(values, (_RESAMPLES, len(values)))
    low, high = np.quantile(np.median(drawn, axis=1), (0.025, 0.975))
    return Duration(
        value=median, low=min(median, round(float(low), 3)), high=max(median, round(float(high), 3))
    )
