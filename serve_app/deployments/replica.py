"""Base of replicas with an engine: health check, readiness and log."""

from __future__ import annotations

import logging
from contextlib import suppress

from serve_app.batching.engine_thread import EngineThread
from serve_app.core.settings import Replicas
from serve_app.deployments.compat.runtime import serve_logger
from serve_app.deployments.telemetry import start_telemetry


class EngineReplica:
    """A replica that is unhealthy when a forward pass hangs or its GPU is broken.

    Args:
        settings: Settings of the deployment.

    Attributes:
        threads: Threads of its engines.
        devices: Devices of its engines.
    """

    def __init__(self, settings: Replicas) -> None:
        join_serve_log()
        start_telemetry()
        self.threads: list[EngineThread] = []
        self.devices: set[str] = set()
        self._max_pass_s = settings.max_pass_s

    async def ping(self) -> bool:
        """Return once the constructor has loaded and run the models."""
        return True

    async def check_health(self) -> None:
        """Called by Serve, which replaces the replica when this hangs or raises three times."""
        for thread in self.threads:
            await thread.check(self._max_pass_s, self._touch)

    def _touch(self) -> None:
        """Raise if a CUDA context is broken: only a new process helps then."""
        if gpus := self.devices - {"cpu"}:
            from serve_app.engines.devices import touch  # loads torch

            for device in gpus:
                touch(device)


def join_serve_log() -> None:
    """Send this project's log records to Serve's handlers: same files, format and request ids."""
    with suppress(ImportError):  # a Ray without it: the ingress warns at its start
        logging.getLogger("serve_app").parent = serve_logger()
