"""What all replicas with an engine share: its thread, health, readiness and log."""

from __future__ import annotations

import logging

from serve_app.batching.engine_thread import EngineThread
from serve_app.core.settings import Replicas
from serve_app.deployments.telemetry import start_telemetry


class EngineReplica:
    """Base of replicas: healthy as long as their engines' threads get on with their work.

    Args:
        settings: of the deployment.

    Attributes:
        threads, devices: where its engines run.
    """

    def __init__(self, settings: Replicas) -> None:
        join_serve_log()
        start_telemetry()
        self.threads: list[EngineThread] = []
        self.devices: set[str] = set()
        self._max_pass_s = settings.max_pass_s

    async def ping(self) -> bool:
        """Answers once the constructor is through: the weights are loaded, and have worked."""
        return True

    async def check_health(self) -> None:
        """Called by Serve, which replaces the replica when this hangs or raises three times."""
        for thread in self.threads:
            await thread.check(self._max_pass_s, self._touch)

    def _touch(self) -> None:
        """After some faults a process's GPU refuses everything: then it must be replaced."""
        if gpus := self.devices - {"cpu"}:
            from serve_app.engines.devices import touch  # torch, which not every replica loads

            for device in gpus:
                touch(device)


def join_serve_log() -> None:
    """Let this project's loggers write where Serve's do: same files, format and request ids."""
    logging.getLogger("serve_app").parent = logging.getLogger("ray.serve")
