"""Plots of simulated runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from serve_tools.simulation.comparison import DEFAULT, OURS, POLICIES, RunSummary
from serve_tools.simulation.engine import Run
from serve_tools.simulation.scenario import Scale
from serve_tools.simulation.traces import Trace, requests_per_s

_COLOURS = {"shared": "#1b6ca8", "default": "#c0504d", "tuned": "#e0a030"}
_POOLS = ("#1b6ca8", "#7fb3d5", "#b03a2e", "#e6b0aa")
_BIN_S = 10.0


def _pyplot() -> Any:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot


def plot_timeline(path: Path, scale: Scale, trace: Trace, runs: Mapping[str, Run]) -> None:
    """Load, running replicas by pool, and missed goals over time, under each policy."""
    plt = _pyplot()
    shown = [policy for policy in (OURS, DEFAULT) if policy in runs]
    figure, axes = plt.subplots(3, len(shown), figsize=(5 * len(shown), 6.5), sharex=True,
                                sharey="row", squeeze=False)  # fmt: skip
    seconds = np.arange(0, trace.seconds, 5)
    rates = [requests_per_s(scale, trace, t) for t in seconds]
    quality = [r * (1 - trace.hot(t)) * trace.mix(t) for r, t in zip(rates, seconds, strict=True)]
    for column, policy in enumerate(shown):
        run, (load, replicas, missed) = runs[policy], axes[:, column]
        load.plot(seconds / 60, rates, color="black", linewidth=1, label="requests/s")
        load.plot(seconds / 60, quality, color="#b03a2e", linewidth=1, label="require quality")
        load.set_title(f"{policy}: {scale.name}, {trace.name}", fontsize=10)
        minutes = np.array(run.timeline.t) / 60
        names = list(run.timeline.running)
        costs = [scale.deployments[name].pool.cost for name in names]
        units = [
            np.array(run.timeline.running[n]) * cost for n, cost in zip(names, costs, strict=True)
        ]
        replicas.stackplot(minutes, *units, labels=names, colors=_POOLS, step="post")
        replicas.axhline(scale.budget, color="black", linewidth=0.8, linestyle=":")
        at, share = _missed_over_time(run, trace.seconds)
        missed.fill_between(at / 60, 100 * share, color=_COLOURS[policy], step="mid", alpha=0.8)
        missed.set_xlabel("minutes")
    axes[0][0].set_ylabel("requests/s")
    axes[1][0].set_ylabel(f"running, {scale.unit}s")
    axes[2][0].set_ylabel("missed goals, %")
    axes[2][0].set_ylim(0, 100)
    axes[0][0].legend(fontsize=7, loc="upper right")
    axes[1][0].legend(fontsize=7, loc="lower right")
    _save(plt, figure, path)


def _missed_over_time(run: Run, seconds: float) -> tuple[Any, Any]:
    edges = np.arange(0, seconds + _BIN_S, _BIN_S)
    all_of, _ = np.histogram(run.t, edges)
    missed, _ = np.histogram(run.t[run.missed], edges)
    return (edges[:-1] + edges[1:]) / 2, missed / np.maximum(all_of, 1)


def plot_summary(path: Path, table: list[RunSummary]) -> None:
    """Missed goals, unit-hours and replica changes by trace and scale."""
    plt = _pyplot()
    scales = list(dict.fromkeys(row.scale for row in table))
    figure, axes = plt.subplots(3, len(scales), figsize=(3.2 * len(scales) + 0.6, 7.5),
                                squeeze=False)  # fmt: skip
    measures: tuple[tuple[str, Callable[[RunSummary], float]], ...] = (
        ("missed goals, %", lambda r: 100 * r.missed),
        ("unit-hours", lambda r: r.unit_hours),
        ("replica changes", lambda r: r.changes),
    )
    policies = [p for p in POLICIES if any(row.policy == p for row in table)]
    for column, scale in enumerate(scales):
        rows = [row for row in table if row.scale == scale]
        names = list(dict.fromkeys(row.trace for row in rows))
        found = {(row.trace, row.policy): row for row in rows}
        for line, (label, value) in enumerate(measures):
            axis = axes[line][column]
            for i, policy in enumerate(policies):
                heights = [
                    value(found[name, policy]) if (name, policy) in found else 0 for name in names
                ]
                axis.bar(np.arange(len(names)) + 0.27 * (i - 1), heights, 0.25,
                         color=_COLOURS[policy], label=policy)  # fmt: skip
            axis.set_xticks(np.arange(len(names)), names, fontsize=7, rotation=30)
            axis.tick_params(axis="y", labelsize=7)
            if line == 0:
                axis.set_title(scale, fontsize=10)
            if column == 0:
                axis.set_ylabel(label, fontsize=8)
    axes[0][0].legend(fontsize=7)
    _save(plt, figure, path)


def _save(plt: Any, figure: Any, path: Path) -> None:
    figure.tight_layout()
    figure.savefig(path, dpi=80)
    plt.close(figure)
