"""Ray Serve's request router for decoders: by the session's id, which is the image's.

Ray's routers that are not first-in first-out find a waiting request by its internal request id,
which all calls of one request share: of several calls at once all but one would wait for ever
(Ray 2.60, `ConsistentHashRouter` too).  So this one chooses for each call by itself and leaves
Ray's queues of pending requests empty.
"""

from __future__ import annotations

import asyncio
from typing import Any

from ray.serve.config import RequestRouterConfig
from ray.serve.request_router import PendingRequest, RequestRouter, RunningReplica

from serve_app.core.settings import DecoderSettings
from serve_app.routing.affinity import preferred


def affinity(settings: DecoderSettings) -> RequestRouterConfig:
    """The router's configuration for a decoder; a replica is hot with more than a full pass."""
    hot_at = min(settings.batching.max_batch_size, settings.max_ongoing_requests)
    options: dict[str, Any] = {
        "request_router_class": f"{__name__}:{AffinityRouter.__name__}",
        "request_router_kwargs": {"hot_at": hot_at},
        # A full decoder has room again after a pass, which takes no longer.
        "initial_backoff_s": 0.005,
        "max_backoff_s": 0.1,
    }
    return RequestRouterConfig(**options)


class AffinityRouter(RequestRouter):
    """Calls with a session id go to its replica, unless that is hot; others to the idlest."""

    def initialize_state(self, **kwargs: Any) -> None:
        """Called by Serve with the configuration's ``request_router_kwargs``."""
        self._hot_at = int(kwargs["hot_at"])
        self._turnstile = asyncio.Lock()

    async def choose_replicas(
        self,
        candidate_replicas: list[RunningReplica],
        pending_request: PendingRequest | None = None,
    ) -> list[list[RunningReplica]]:
        """Candidates in ranks: the first rank with room is to take the request."""
        if pending_request is None or not pending_request.metadata.session_id:
            return [candidate_replicas]
        # Ray's own loop, which others of its interfaces still use, must wait between its tries.
        pending_request.routing_context.should_backoff = True
        by_id = {replica.replica_id.unique_id: replica for replica in candidate_replicas}
        known = self.replica_queue_len_cache
        order = preferred(
            pending_request.metadata.session_id,
            {name: known.get(replica.replica_id) or 0 for name, replica in by_id.items()},
            hot_at=self._hot_at,
            full_at=min((r.max_ongoing_requests for r in candidate_replicas), default=1),
        )
        return [[by_id[name]] for name in order]

    async def _choose_replica_for_request(
        self, pending_request: PendingRequest, *, is_retry: bool = False
    ) -> RunningReplica:
        if not self._turnstile.locked():
            replica = await self._try(pending_request, 0)
            if replica is not None:
                return replica
        # All are full, or there are none: one call after the other waits for a place.
        async with self._turnstile:
            attempt = 0
            while (replica := await self._try(pending_request, attempt)) is None:
                if self.curr_replicas:
                    await self._backoff(attempt)
                    attempt += 1
                else:
                    self._replicas_updated_event.clear()
                    await self._replicas_updated_event.wait()
            return replica

    async def _try(self, pending_request: PendingRequest, attempt: int) -> RunningReplica | None:
        for rank in await self.choose_replicas(list(self.curr_replicas.values()), pending_request):
            replica = await self._select_from_candidate_replicas(rank, attempt)
            if replica is not None:
                return replica
        return None
