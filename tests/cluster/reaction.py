"""How fast replicas follow a load that moves from *fast* to *accurate*.

    python -m tests.cluster.reaction

runs the same load on a Ray of its own, with the application's policy and with Ray's policy for
each deployment, and prints a table.  The node has CPUs for exactly the policy's budget.
"""

from __future__ import annotations

import argparse
import os
import time
from typing import Any

from ..ports import free_ports
from . import scaling_graph
from .load import Phase, Record, drive
from .ray_cluster import RayCluster, wait_until

GOAL_S = 2.0
BUDGET = 6 * scaling_graph.SLOT
SCALING = {"budget": BUDGET, "goal_ms": GOAL_S * 1e3, "hold_s": 20.0}
RATE = 8.0
"""Images a second: one encoder embeds five."""

POLICIES: dict[str, tuple[dict[str, Any], bool]] = {
    "one budget (this project)": (scaling_graph.QUICK, True),
    "Ray's, its default delays": ({}, False),
    "Ray's, tuned": (
        {
            "target_ongoing_requests": 3,
            "upscale_delay_s": 2,
            "downscale_delay_s": 10,
            "look_back_period_s": 2,
            "metrics_interval_s": 0.5,
        },
        False,
    ),
}


def deploy(cluster: RayCluster, config: dict[str, Any], name: str) -> None:
    """Deploy a configuration, and wait until an application of it runs."""
    cluster.deploy(config)
    wait_until(
        lambda: cluster.applications().get(name, {}).get("status") == "RUNNING",
        f"the application {name} runs",
        120.0,
    )


def measure(cluster: RayCluster, port: int, index: int, warm_s: float, then_s: float) -> Record:
    """One policy: *fast* alone for ``warm_s``, and *accurate* alone from then on."""
    autoscaling, ours = list(POLICIES.values())[index]
    name = f"run{index}"
    settings = scaling_graph.graph(SCALING, autoscaling)
    # Whatever the node has beyond the budget, so that nobody gets more than it.
    settings["ingress"]["ray_actor_options"]["num_cpus"] = 2 - BUDGET
    config = {
        "http_options": {"host": "127.0.0.1", "port": port},
        "applications": [scaling_graph.application(name, settings, ours)],
    }
    deploy(cluster, config, name)
    return drive(cluster, name, [Phase(warm_s, {"fast": RATE}), Phase(then_s, {"accurate": RATE})])


def row(title: str, record: Record, warm_s: float, then_s: float) -> str:
    end = warm_s + then_s
    moved = record.last_change(warm_s, "running")
    back = record.back_at("accurate", GOAL_S, warm_s, end)
    cells = [
        title,
        _replicas(record, "fast-encoder", warm_s, "target"),
        _replicas(record, "accurate-encoder", end, "running"),
        "none" if moved is None else f"{moved:.1f}",
        f"not in {then_s:.0f}" if back is None else f"{back:.1f}",
        _seconds(record.p50_s("accurate", warm_s, warm_s + 20)),
        _seconds(record.p50_s("accurate", end - 20, end)),
        str(record.changes(0.0)),
    ]
    return f"| {' | '.join(cells)} |"


def _replicas(record: Record, name: str, until: float, key: str) -> str:
    seen = [getattr(sample, key).get(name, 0) for sample in record.samples if sample.at < until]
    return str(seen[-1]) if seen else "-"


def _seconds(value: float | None) -> str:
    return "-" if value is None else "failed" if value == float("inf") else f"{value:.2f}"


HEAD = (
    "| policy | *fast* encoders before | *accurate* encoders at the end "
    "| last replica moved after, s | p50 at goal after, s | p50 of the first 20 s, s "
    "| p50 of the last 20 s, s | replica changes, all of the run |\n" + "|---" * 8 + "|"
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--warm", type=float, default=60.0, help="seconds before the shift")
    parser.add_argument("--then", type=float, default=90.0, help="seconds after it")
    parser.add_argument("--only", type=int, choices=range(len(POLICIES)), help="one policy")
    parser.add_argument("--verbose", action="store_true", help="replicas over time")
    args = parser.parse_args()
    os.environ["RAY_AUTH_MODE"] = "disabled"
    chosen = range(len(POLICIES)) if args.only is None else [args.only]
    cluster = RayCluster(num_gpus=0)
    (port,) = free_ports(1)
    rows = []
    try:
        cluster.wait_until_up()
        with cluster.driver():
            for index in chosen:
                record = measure(cluster, port, index, args.warm, args.then)
                rows.append(row(list(POLICIES)[index], record, args.warm, args.then))
                print(rows[-1], flush=True)
                if args.verbose:
                    _print_samples(record)
                time.sleep(2)
    finally:
        cluster.stop()
    print(
        f"\n{RATE:g} images/s move from *fast* to *accurate*, which sleeps; goal {GOAL_S:g} s; "
        f"at most {round(BUDGET / scaling_graph.SLOT)} encoders and decoders together.\n\n{HEAD}"
    )
    print("\n".join(rows))


def _print_samples(record: Record) -> None:
    last = None
    for sample in record.samples:
        state = (dict(sample.target), dict(sample.running))
        if state != last:
            last = state
            shown = {n: f"{sample.running.get(n, 0)}/{t}" for n, t in sample.target.items()}
            print(f"  {sample.at:6.1f} s  {shown}")


if __name__ == "__main__":
    main()
