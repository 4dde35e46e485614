"""Affinity of decoders: calls for an image go to the replica that has its embedding."""

from __future__ import annotations

from typing import Any

from ray.serve.config import RequestRouterConfig
from ray.serve.request_router import RunningReplica

from serve_app.core.settings import DecoderSettings
from serve_app.deployments.compat.router import RankedRouter
from serve_app.routing.affinity import preferred


def affinity(settings: DecoderSettings) -> RequestRouterConfig:
    """The router configuration of a decoder; a replica with more than a full batch is hot."""
    hot_at = min(settings.batching.max_batch_size, settings.max_ongoing_requests)
    options: dict[str, Any] = {
        "request_router_class": f"{__name__}:{AffinityRouter.__name__}",
        "request_router_kwargs": {"hot_at": hot_at},
        # A full decoder has a free slot after a pass, which takes no longer.
        "initial_backoff_s": 0.005,
        "max_backoff_s": 0.1,
    }
    return RequestRouterConfig(**options)


class AffinityRouter(RankedRouter):
    """Prefers the replica to which the session id (the image id) hashes, unless it is hot."""

    def initialize_state(self, **kwargs: Any) -> None:
        """Called by Serve with ``request_router_kwargs``."""
        super().initialize_state(**kwargs)
        self._hot_at = int(kwargs["hot_at"])

    def rank(self, replicas: list[RunningReplica], session_id: str) -> list[RunningReplica]:
        """Replicas in the order in which to try them."""
        by_id = {replica.replica_id.unique_id: replica for replica in replicas}
        order = preferred(
            session_id,
            {name: self.queue_length(replica) for name, replica in by_id.items()},
            hot_at=self._hot_at,
            full_at=min((replica.max_ongoing_requests for replica in replicas), default=1),
        )
        return [by_id[name] for name in order]
