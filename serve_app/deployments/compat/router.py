"""A request router that tries ranks of replicas in order, built on private parts of Ray's router.

Ray's routers other than first-in first-out look up a waiting call by its internal request id, which
all calls of one request share: of several concurrent calls, all but one hang (Ray 2.60,
`ConsistentHashRouter` too).  This one chooses a replica for each call on its own and leaves Ray's
queues of pending requests empty.
"""

from __future__ import annotations

import asyncio
from typing import Any

from ray.serve.request_router import PendingRequest, RequestRouter, RunningReplica


class RankedRouter(RequestRouter):
    """Sends a call to the first rank of replicas with a free slot, else waits for one.

    Subclasses define `rank`.  Calls without a session id go to the least loaded replica.
    """

    def initialize_state(self, **kwargs: Any) -> None:
        """Called by Serve with ``request_router_kwargs``."""
        self._waiting = asyncio.Lock()

    def rank(self, replicas: list[RunningReplica], session_id: str) -> list[RunningReplica]:
        """Replicas in the order in which to try them."""
        raise NotImplementedError

    def queue_length(self, replica: RunningReplica) -> int:
        """Last known number of requests in flight at a replica."""
        return self.replica_queue_len_cache.get(replica.replica_id) or 0

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
        ranked = self.rank(candidate_replicas, pending_request.metadata.session_id)
        return [[replica] for replica in ranked]

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
