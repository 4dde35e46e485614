"""Proposals replicas: an image in, candidate regions out."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor

from serve_app.compute.detector import EfficientDet
from serve_app.compute.engines import ModelSource
from serve_app.compute.proposals import Proposals
from serve_app.domain.settings import ProposalsSettings
from serve_app.domain.types import Proposal, ProposalSource, RgbArray


class ProposalsReplica:
    """Grid, detector and contours behind one method."""

    def __init__(self, settings: ProposalsSettings, source: ModelSource) -> None:
        detector = None
        if settings.detector is not None:
            detector = EfficientDet(source.files(settings.detector)["model"], settings.threads)
        self._engine = Proposals(detector)
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="engine")

    async def propose(
        self, pixels: RgbArray, source: ProposalSource, points_per_side: int
    ) -> tuple[Proposal, ...]:
        """See `serve_app.ports.Proposer.propose`."""
        return await asyncio.get_running_loop().run_in_executor(
            self._thread, self._engine.propose, pixels, source, points_per_side
        )
