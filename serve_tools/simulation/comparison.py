"""The same trace under several policies, compared."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from serve_tools.markdown import markdown_table
from serve_tools.simulation.engine import KINDS, OUTCOMES, Options, Run, Simulation
from serve_tools.simulation.policies import RayConfig, RayDefault, Scaler, Shared
from serve_tools.simulation.scenario import Scale
from serve_tools.simulation.traces import Trace

OURS, DEFAULT, TUNED = "shared", "default", "tuned"
POLICIES = {
    OURS: "the application's policy",
    DEFAULT: "Ray Serve's per-deployment policy, unchanged",
    TUNED: "the same with a full batch as target_ongoing_requests, delays of 5 and 60 s, a "
    "look-back of 5 s and metrics each second",
}

_FEW = 0.005
"""If the default misses a smaller share of goals than this, halving it is not required."""


@dataclass(frozen=True, slots=True)
class RunSummary:
    """One run in figures; shares are of all requests.

    Attributes:
        p50_ms, p99_ms: of the completed requests.
        missed: share of requests that missed their goal, including rejected and lost ones.
        refused: share without a response, for any reason.
        unit_hours: GPU-hours or core-hours of all replicas.
        changes: replicas started and stopped by the policy.
        decisions: times that it changed a deployment's number.
        missed_by_kind, outcomes: the shares within each kind, and of each outcome.
    """

    scale: str
    trace: str
    policy: str
    requests: int
    requests_per_s: float
    p50_ms: float
    p99_ms: float
    missed: float
    refused: float
    unit_hours: float
    changes: int
    decisions: int
    missed_by_kind: dict[str, float]
    outcomes: dict[str, float]

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def scaler(policy: str, scale: Scale) -> Scaler:
    """Create the policy with this name in `POLICIES`."""
    if policy == OURS:
        return Shared(scale.pools, scale.scaling)
    if policy == DEFAULT:
        return RayDefault(RayConfig())
    targets = {name: d.target_ongoing for name, d in scale.deployments.items()}
    config = RayConfig(
        look_back_period_s=5.0, metrics_interval_s=1.0, upscale_delay_s=5.0, downscale_delay_s=60.0
    )
    return RayDefault(config, targets)


def simulate(scale: Scale, trace: Trace, policy: str, options: Options) -> tuple[RunSummary, Run]:
    """One run, and its row of the table."""
    run = Simulation(scale, trace, scaler(policy, scale), options).run()
    return summarise(run, scale, trace, policy), run


def summarise(run: Run, scale: Scale, trace: Trace, policy: str) -> RunSummary:
    """A run's row of the table."""
    completed = run.latency_s[~np.isnan(run.latency_s)]
    p50, p99 = np.quantile(completed, (0.5, 0.99)) if len(completed) else (np.nan, np.nan)
    n = max(1, len(run.t))

    def share(flags: Any) -> float:
        return round(float(np.mean(flags)), 6) if len(flags) else 0.0

    return RunSummary(
        scale=scale.name,
        trace=trace.name,
        policy=policy,
        requests=len(run.t) * run.weight,
        requests_per_s=round(len(run.t) * run.weight / trace.seconds, 2),
        p50_ms=round(1e3 * float(p50), 1),
        p99_ms=round(1e3 * float(p99), 1),
        missed=share(run.missed),
        refused=share(run.outcome != OUTCOMES.index("completed")),
        unit_hours=round(run.unit_hours, 3),
        changes=run.starts + run.stops,
        decisions=run.decisions,
        missed_by_kind={k: share(run.missed[run.kind == i]) for i, k in enumerate(KINDS)},
        outcomes={o: round(float(np.sum(run.outcome == i)) / n, 6) for i, o in enumerate(OUTCOMES)},
    )


def shortfalls(rows: Mapping[str, RunSummary]) -> list[str]:
    """Describe where the application's policy is not clearly better than the default.

    Clearly better: at most half the missed goals, or fewer than 0.5 % if the default has few;
    not more unit-hours; not more changes.
    """
    ours, default = rows[OURS], rows[DEFAULT]
    short = []
    if ours.missed > max(default.missed / 2, _FEW if default.missed < 2 * _FEW else 0.0):
        short.append("missed")
    if ours.unit_hours > default.unit_hours * 1.005:
        short.append("hours")
    if ours.changes > default.changes:
        short.append("changes")
    return short


def markdown(table: list[RunSummary]) -> str:
    """All rows, those of one trace together."""
    head = ["scale", "trace", "policy", "requests/s", "p50 ms", "p99 ms", "missed goals", "refused"]
    head += ["unit-hours", "replica changes"]
    rows = [
        [
            *(r.scale, r.trace, r.policy),
            *(f"{r.requests_per_s:,.1f}", f"{r.p50_ms:,.0f}", f"{r.p99_ms:,.0f}"),
            *(f"{100 * r.missed:.2f} %", f"{100 * r.refused:.2f} %"),
            *(f"{r.unit_hours:.2f}", str(r.changes)),
        ]
        for r in table
    ]
    return markdown_table(head, rows, left=3) + "\n"


def verdicts(table: list[RunSummary]) -> str:
    """A line for each trace: this application's policy compared with the default."""
    groups: dict[tuple[str, str], dict[str, RunSummary]] = {}
    for row in table:
        groups.setdefault((row.scale, row.trace), {})[row.policy] = row
    lines = []
    for (scale, trace), rows in groups.items():
        if not {OURS, DEFAULT} <= rows.keys():
            continue
        short = shortfalls(rows)
        ours, default = rows[OURS], rows[DEFAULT]
        lines.append(
            f"- {scale}, {trace}: missed {100 * ours.missed:.2f} %, default "
            f"{100 * default.missed:.2f} %, {ours.unit_hours:.2f} unit-hours, default "
            f"{default.unit_hours:.2f}; {ours.changes} changes, default "
            f"{default.changes}" + (f"; falls short in: {', '.join(short)}" if short else "")
        )
    return "\n".join(lines) + "\n" if lines else ""
