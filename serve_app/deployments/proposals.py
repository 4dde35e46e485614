"""Proposals replicas: an image in, candidate regions out."""

from __future__ import annotations

from serve_app.batching.engine_thread import EngineThread
from serve_app.core.inference import Proposal
from serve_app.core.settings import ProposalsSettings
from serve_app.core.types import ProposalSource, RgbArray
from serve_app.deployments.replica import EngineReplica
from serve_app.models.factory import ModelSource


class ProposalsReplica(EngineReplica):
    """All sources of candidate regions: grid, detector and contours."""

    def __init__(self, settings: ProposalsSettings, source: ModelSource) -> None:
        super().__init__(settings)
        self._engine = source.load_proposals(settings)
        self._thread = EngineThread()
        self.threads = [self._thread]

    async def propose(
        self,
        pixels: RgbArray | None,
        size: tuple[int, int],
        source: ProposalSource,
        points_per_side: int,
    ) -> tuple[Proposal, ...]:
        """See `serve_app.core.ports.Proposer.propose`."""
        return await self._thread.run(self._engine.propose, pixels, size, source, points_per_side)
