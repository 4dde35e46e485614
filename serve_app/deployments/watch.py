"""How many replicas each variant has at present, as Serve's controller tells."""

from __future__ import annotations

import asyncio
import logging

from ray import serve

from serve_app.domain.settings import GraphSettings
from serve_app.routing.board import LoadBoard

_PERIOD_S = 1.0

log = logging.getLogger(__name__)


class ReplicaWatch:
    """Keeps a `LoadBoard`'s replica counts true while the ingress lives.

    Args:
        settings: which variants there are.
        board: told of every look.
    """

    def __init__(self, settings: GraphSettings, board: LoadBoard) -> None:
        self._fused = {name: v.layout == "fused" for name, v in settings.variants.items()}
        self._board = board
        self._application = serve.get_replica_context().app_name
        # Serve constructs replicas inside their event loop; the loop alone would not keep the task.
        self._task = asyncio.get_running_loop().create_task(self._run())

    async def _run(self) -> None:
        blind = False
        while True:
            try:
                self._note(await asyncio.to_thread(running_replicas, self._application))
                blind = False
            except Exception:
                # The controller is away for a moment: what was last known holds.
                if not blind:
                    log.warning("no replica counts", exc_info=True)
                blind = True
            await asyncio.sleep(_PERIOD_S)

    def _note(self, running: dict[str, int]) -> None:
        for name, fused in self._fused.items():
            decoders = running.get(f"{name}-decoder", 0)
            encoders = decoders if fused else running.get(f"{name}-encoder", 0)
            self._board.replicas(name, encoders, decoders)


def running_replicas(application: str) -> dict[str, int]:
    """Running replicas by deployment; blocks for a call to the controller."""
    found = serve.status().applications[application].deployments
    return {
        name: sum(n for state, n in told.replica_states.items() if state == "RUNNING")
        for name, told in found.items()
    }
