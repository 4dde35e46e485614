"""How many replicas each variant has at present, as Serve's controller tells when it changes."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Any

import ray
from ray import serve
from ray.serve._private.common import DeploymentID
from ray.serve._private.constants import SERVE_CONTROLLER_NAME, SERVE_NAMESPACE
from ray.serve._private.long_poll import LongPollClient, LongPollNamespace

from serve_app.core.settings import GraphSettings
from serve_app.routing.load_tracker import LoadTracker
from serve_app.telemetry.metrics import VARIANT_REPLICAS

OTHERS = ("proposals", "text")
"""Deployments that belong to no variant; one that there is not has no replicas, either."""


class ReplicaCounts:
    """Knows how many replicas run, and tells a `LoadTracker` of those of variants.

    Attributes:
        parts: names of the deployments that count.
    """

    def __init__(self, settings: GraphSettings, load_tracker: LoadTracker) -> None:
        self._fused = {name: v.layout == "fused" for name, v in settings.variants.items()}
        self._load_tracker = load_tracker
        encoders = [f"{name}-encoder" for name, fused in self._fused.items() if not fused]
        self._halves = {*encoders, *(f"{name}-decoder" for name in self._fused)}
        self.parts = [*sorted(self._halves), *OTHERS]
        self._running = dict.fromkeys(self.parts, 0)

    def runs(self, *parts: str) -> bool:
        """Whether each of these deployments has a running replica."""
        return all(self._running[part] for part in parts)

    def told(self, part: str, targets: Any) -> None:
        """A deployment's running replicas are others now; ``targets`` is a DeploymentTargetInfo."""
        self._running[part] = len(targets.running_replicas)
        if part not in self._halves:
            return
        variant, _, half = part.rpartition("-")
        VARIANT_REPLICAS.set(self._running[part], variant=variant, half=half)
        for name, fused in self._fused.items():
            decoders = self._running[f"{name}-decoder"]
            self._load_tracker.replicas(
                name, decoders if fused else self._running[f"{name}-encoder"], decoders
            )


class ReplicaWatch:
    """Keeps a `LoadTracker`'s replica counts true while the ingress lives.

    It listens where Serve's own routers do.  (Asking for ``serve.status()`` again and again takes
    some percent of a core here and in the controller, for which masks on a small machine wait.)

    Args:
        settings: which variants there are.
        load_tracker: told of every change.
    """

    def __init__(self, settings: GraphSettings, load_tracker: LoadTracker) -> None:
        counts = ReplicaCounts(settings, load_tracker)
        self.runs = counts.runs
        application = serve.get_replica_context().app_name
        topic = LongPollNamespace.DEPLOYMENT_TARGETS
        listeners: dict[Any, Any] = {
            (topic, DeploymentID(part, application)): partial(counts.told, part)
            for part in counts.parts
        }
        self._client = LongPollClient(
            ray.get_actor(SERVE_CONTROLLER_NAME, namespace=SERVE_NAMESPACE),
            listeners,
            call_in_event_loop=asyncio.get_running_loop(),
            client_id=f"{type(self).__name__}:{application}",
        )
