"""Replica counts, as Serve's controller reports them, for router and readiness."""

from __future__ import annotations

from serve_app.core.settings import GraphSettings
from serve_app.routing.load_tracker import LoadTracker
from serve_app.telemetry.metrics import VARIANT_REPLICAS

OTHERS = ("proposals", "text")
"""Deployments that belong to no variant."""


class ReplicaCounts:
    """Numbers of running replicas; those of variants are passed on to a `LoadTracker`."""

    def __init__(self, settings: GraphSettings, load_tracker: LoadTracker) -> None:
        self._fused = {name: v.layout == "fused" for name, v in settings.variants.items()}
        self._load_tracker = load_tracker
        encoders = [f"{name}-encoder" for name, fused in self._fused.items() if not fused]
        self._components = {*encoders, *(f"{name}-decoder" for name in self._fused)}
        self.deployments = [*sorted(self._components), *OTHERS]
        self._running = dict.fromkeys(self.deployments, 0)

    def runs(self, *deployments: str) -> bool:
        """Whether each of these deployments has a running replica."""
        return all(self._running[name] for name in deployments)

    def update(self, deployment: str, running: int) -> None:
        """Set the number of running replicas of a deployment."""
        self._running[deployment] = running
        if deployment not in self._components:
            return
        variant, _, component = deployment.rpartition("-")
        VARIANT_REPLICAS.set(running, variant=variant, half=component)
        for name, fused in self._fused.items():
            decoders = self._running[f"{name}-decoder"]
            self._load_tracker.replicas(
                name, decoders if fused else self._running[f"{name}-encoder"], decoders
            )
