"""Predicts the latencies of a live run on one shared device."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from serve_tools.simulation.engine import Options, Simulation
from serve_tools.simulation.policies import Fixed
from serve_tools.simulation.scenario import Scale
from serve_tools.simulation.traces import Trace


def predict(
    scale: Scale,
    *,
    rate: float,
    mix: float = 0.0,
    new: float = 0.5,
    prompts: tuple[int, ...] = (1,),
    minutes: float = 60.0,
    seed: int = 0,
) -> dict[str, float]:
    """Latencies of Poisson arrivals at one replica of each pool, all on one device.

    Passes share the device evenly, so the figures of ``scale`` are those of a pass that runs alone,
    like those of a ledger where a replica's threads use all cores.

    Args:
        rate: requests a second.
        mix: share that requires the accurate variant.
        new: share with an uncached image.
        prompts: of a request, equally likely.
        minutes: simulated.

    Returns:
        ``p50_ms``, ``p90_ms``, ``p99_ms`` of all responses, ``completed_share``.
    """
    single = {
        name: replace(d, pool=replace(d.pool, min_replicas=1, max_replicas=1, cost=0.01))
        for name, d in scale.deployments.items()
    }
    trace = Trace(
        "live", 60 * minutes, lambda t: 0.0, lambda t: mix, lambda t: 0.0,
        new=new, prompts=prompts, rate=rate,
    )  # fmt: skip
    simulation = Simulation(
        replace(scale, deployments=single), trace, Fixed(), Options(seed=seed, shared_device=True)
    )
    run = simulation.run()
    completed = run.latency_s[~np.isnan(run.latency_s)]
    if not len(completed):
        return {"completed_share": 0.0}
    p50, p90, p99 = (1e3 * float(q) for q in np.quantile(completed, (0.5, 0.9, 0.99)))
    return {
        "p50_ms": p50,
        "p90_ms": p90,
        "p99_ms": p99,
        "completed_share": len(completed) / len(run.latency_s),
    }
