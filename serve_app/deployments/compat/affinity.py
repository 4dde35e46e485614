"""Affinity of decoders: calls for an image go to the replica that has its embedding.

Built on private parts of Ray's router.  Ray's routers other than first-in first-out look up a
waiting call by its internal request id, which all calls of one request share: of several concurrent
calls, all but one hang (Ray 2.60, `ConsistentHashRouter` too).  This one chooses a replica for each
call on its own and leaves Ray's queues of pending requests empty.
"""

from __future__ import annotations

import asyncio
from typing import Any

from ray.serve.config import RequestRouterConfig
from ray.serve.request_router import PendingRequest, RequestRouter, RunningReplica

from serve_app.core.settings import DecoderSettings
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


class AffinityRouter(RequestRouter):
    """Prefers the replica to which the session id (the image id) hashes, unless it is hot.

    Calls without a session id go to the least loaded replica.  If all are full, a call waits.
    """

    def initialize_state(self, **kwargs: Any) -> None:
        """Called by Serve with ``request_router_kwargs``."""
        self._hot_at = int(kwargs["hot_at"])
        self._waiting = asyncio.Lock()

    async def choose_replicas(
        self,
        candidate_replicas: list[RunningReplica],
        pending_request: PendingRequest | None = None,
    ) -> list[list[RunningReplica]]:
        """Called by Serve; candidates in ranks."""
        if pending_request is None or not pending_request.metadata.session_id:
            return [candidate_replicas]
        # Ray's own loop, which some of its interfaces use, must back off between attempts.
        pending_request.routing_context.should_backoff = True
        by_id = {replica.replica_id.unique_id: replica for replica in candidate_replicas}
        known = self.replica_queue_len_cache.get
        order = preferred(
            pending_request.metadata.session_id,
            {name: known(replica.replica_id) or 0 for name, replica in by_id.items()},
            hot_at=self._hot_at,
            full_at=min((r.max_ongoing_requests for r in candidate_replicas), default=1),
        )
        return [[by_id[name]] for name in order]

    async def _choose_replica_for_request(
        self, pending_request: PendingRequest, *, is_retry: bool = False
    ) -> RunningReplica:
        if not self._waiting.locked():
            replica = await self._try(pending_request, 0)
            if replica is not None:
                return replica
        # All replicas are full, or there are none: waiting calls take turns.
        async with self._waiting:
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
