"""The simulated cluster and its pools at four sizes, and the variants' figures.

The figures are assumptions of the right magnitude, so that the simulator runs without a ledger:
a small encoder several times as fast as a large one, decoders of a few milliseconds.  Those of a
host come from its ledger (`with_profiles`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from serve_app.core.measurements import Profile, best_ms_per_item
from serve_app.core.settings import RouterSettings, ScalingSettings
from serve_app.scaling.types import Pool

FAST, ACCURATE = "fast", "accurate"

GPU_PROFILES = {
    FAST: Profile(
        encode_ms={1: 25, 2: 40, 4: 70, 8: 130},
        decode_ms={1: 6, 8: 9, 32: 20, 128: 68},
        quality={"box": 0.80, "point": 0.68},
        cold_start_s=12.0,
    ),
    ACCURATE: Profile(
        encode_ms={1: 250, 2: 450, 4: 850},
        decode_ms={1: 6, 8: 9, 32: 20, 128: 68},
        quality={"box": 0.86, "point": 0.75},
        cold_start_s=25.0,
    ),
}
"""Milliseconds on a quarter of a data-centre GPU (encoders) and a twentieth of it (decoders)."""

CPU_PROFILES = {
    FAST: Profile(
        encode_ms={1: 1000, 2: 1900},
        decode_ms={1: 60, 8: 150, 32: 450},
        quality={"box": 0.80, "point": 0.68},
        cold_start_s=6.0,
    ),
    ACCURATE: Profile(
        encode_ms={1: 3500},
        decode_ms={1: 60, 8: 150, 32: 450},
        quality={"box": 0.86, "point": 0.75},
        cold_start_s=9.0,
    ),
}
"""Milliseconds on half a core (encoders) and a tenth of it (decoders)."""


@dataclass(frozen=True, slots=True)
class Deployment:
    """A pool and the bounds of its queues.

    Attributes:
        pool: the scaling policy's input.
        max_ongoing: requests in one replica.
        max_queued: requests that wait for a replica beyond that; more are rejected.
        target_ongoing: of the tuned default policy: a full batch for each replica.
    """

    pool: Pool
    max_ongoing: int
    max_queued: int

    @property
    def target_ongoing(self) -> float:
        return float(self.pool.max_batch)


@dataclass(frozen=True, slots=True)
class Scale:
    """A cluster and its deployments.

    Attributes:
        budget: units of the cluster, which the policy shares and no policy can exceed.
        unit: what a unit is called.
        goal_ms: latency goals of requests to the fast and to the accurate variant.
        images: distinct images that known-image requests come back to.
        cached: embeddings that a variant's cache holds.
    """

    name: str
    budget: float
    unit: str
    profiles: Mapping[str, Profile]
    deployments: Mapping[str, Deployment]
    scaling: ScalingSettings
    goal_ms: Mapping[str, float]
    images: int
    cached: int
    router: RouterSettings = field(default_factory=lambda: RouterSettings(default=FAST))

    @property
    def pools(self) -> dict[str, Pool]:
        return {name: d.pool for name, d in self.deployments.items()}

    def units_per_request(self, variant: str, new: float, prompts: float) -> float:
        """Unit-seconds of a request in full batches, ``new`` of them with a new image."""
        encoder = self.deployments[f"{variant}-encoder"].pool
        decoder = self.deployments[f"{variant}-decoder"].pool
        encode = best_ms_per_item(encoder.pass_ms, encoder.max_batch) * encoder.cost
        decode = best_ms_per_item(decoder.pass_ms, decoder.max_batch) * decoder.cost
        return (new * encode + prompts * decode) / 1e3


def _deployments(
    profiles: Mapping[str, Profile],
    budget: float,
    costs: tuple[float, float],
    batches: Mapping[str, tuple[int, int]],
    minima: Mapping[str, int],
    max_ongoing: tuple[int, int],
    max_queued: int,
) -> dict[str, Deployment]:
    made = {}
    for variant, profile in profiles.items():
        for i, role in enumerate(("encoder", "decoder")):
            cost = costs[i]
            pool = Pool(
                name=f"{variant}-{role}",
                variant=variant,
                role="encoder" if i == 0 else "decoder",
                cost=cost,
                min_replicas=minima[variant],
                # Any pool may take most of the cluster, as in the shipped configurations.
                max_replicas=max(1, int((0.75 if i == 0 else 0.25) * budget / cost)),
                max_batch=batches[variant][i],
                pass_ms=profile.encode_ms if i == 0 else profile.decode_ms,
                cold_start_s=profile.cold_start_s,
            )
            made[pool.name] = Deployment(pool, max_ongoing[i], max_queued)
    return made


def _gpus(count: int) -> Scale:
    return Scale(
        name=f"{count} GPU" + "s" * (count > 1),
        budget=float(count),
        unit="GPU",
        profiles=GPU_PROFILES,
        deployments=_deployments(
            GPU_PROFILES, count, (0.225, 0.05), {FAST: (8, 128), ACCURATE: (4, 128)},
            {FAST: 1, ACCURATE: 1}, (64, 512), 512 * count,
        ),
        scaling=ScalingSettings(budget=count),
        goal_ms={FAST: 1000.0, ACCURATE: 3000.0},
        images=500 * count,
        cached=5000 * count,
    )  # fmt: skip


def scales() -> dict[str, Scale]:
    """The built-in sizes by the name the command takes."""
    cores = Scale(
        name="2 cores",
        budget=2.0,
        unit="core",
        profiles=CPU_PROFILES,
        deployments=_deployments(
            CPU_PROFILES, 2.0, (0.45, 0.1), {FAST: (2, 32), ACCURATE: (1, 32)},
            {FAST: 1, ACCURATE: 0}, (64, 256), 256,
        ),
        scaling=ScalingSettings(budget=2.0, goal_ms=5000.0),
        goal_ms={FAST: 5000.0, ACCURATE: 20000.0},
        images=50,
        cached=500,
    )  # fmt: skip
    return {"2-cores": cores, "1-gpu": _gpus(1), "8-gpus": _gpus(8), "64-gpus": _gpus(64)}


def with_profiles(scale: Scale, profiles: Mapping[str, Profile]) -> Scale:
    """The same cluster with measured figures for the variants named in ``profiles``."""
    merged = {name: profiles.get(name, profile) for name, profile in scale.profiles.items()}
    deployments = {}
    for name, deployment in scale.deployments.items():
        profile = merged[deployment.pool.variant]
        encoder = deployment.pool.role == "encoder"
        deployments[name] = replace(
            deployment,
            pool=replace(
                deployment.pool,
                pass_ms=profile.encode_ms if encoder else profile.decode_ms,
                cold_start_s=profile.cold_start_s,
            ),
        )
    return replace(scale, profiles=merged, deployments=deployments)
