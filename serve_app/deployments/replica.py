"""What all replicas with an engine share: its thread, health, readiness and log."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")


class EngineThread:
    """Runs a blocking engine beside the replica's event loop, which stays free meanwhile."""

    def __init__(self, workers: int = 1) -> None:
        self._pool = ThreadPoolExecutor(max_workers=workers, thread_name_prefix="engine")

    async def run(self, function: Callable[..., T], *args: object) -> T:
        """Run a function in the thread, after what is queued there."""
        return await asyncio.get_running_loop().run_in_executor(self._pool, function, *args)


class EngineReplica:
    """Base of replicas: healthy as long as their engines' threads take work."""

    def __init__(self) -> None:
        join_serve_log()
        self.threads: list[EngineThread] = []

    async def ping(self) -> bool:
        """Answers once the constructor is through: the weights are loaded."""
        return True

    async def check_health(self) -> None:
        """Called by Serve, which replaces the replica when this hangs or raises."""
        for thread in self.threads:
            await thread.run(_nothing)


def _nothing() -> None:
    """Runs when the thread gets to it."""


def join_serve_log() -> None:
    """Let this project's loggers write where Serve's do: same files, format and request ids."""
    logging.getLogger("serve_app").parent = logging.getLogger("ray.serve")
