"""Deployments that use the private parts of Ray as the service does, and report what they see."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Any

import numpy as np
from ray import serve
from ray.serve import Application
from starlette.requests import Request

from serve_app.deployments.calls import await_response
from serve_app.deployments.compat.runtime import (
    RequestContext,
    by_reference,
    serve_logger,
    serve_logs_dir,
    watch_replica_counts,
)
from serve_app.deployments.metrics import cluster_metrics

ROOT = Path(__file__).resolve().parents[3]
CALLEES = 2
_OPTIONS = {
    "num_cpus": 0,
    "runtime_env": {"env_vars": {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}},
}


class Callee:
    """What `Probe` calls."""

    async def request_id(self) -> str:
        return RequestContext().request_id()

    async def is_read_only(self, array: Any) -> bool:
        """Whether an array comes from the object store, which Ray maps read-only."""
        return not array.flags.writeable

    async def die(self) -> None:
        os._exit(1)


class Probe:
    """Each method exercises one private part."""

    def __init__(self, callee: Any) -> None:
        self._callee = callee

    async def replica_counts(self) -> dict[str, int]:
        counts = {"callee": 0, "absent": 0}
        watch = watch_replica_counts(counts, counts.__setitem__)
        async with asyncio.timeout(30):
            while counts["callee"] < CALLEES:  # noqa: ASYNC110 - the controller decides
                await asyncio.sleep(0.05)
        del watch
        return counts

    async def request_ids(self) -> tuple[str, str, str]:
        """Before renaming, after it, and as the callee sees it."""
        request = RequestContext()
        before = request.request_id()
        request.rename("renamed")
        return before, request.request_id(), await self._callee.request_id.remote()

    async def travels_by_reference(self) -> bool:
        array = np.zeros(2**20)
        return bool(await by_reference(self._callee, "is_read_only").remote(array))

    async def lost(self, reference: bool) -> str:
        """How the death of a callee during a call is reported."""
        call = by_reference(self._callee, "die") if reference else self._callee.die
        try:
            await await_response(call.remote())
        except Exception as exc:
            return type(exc).__name__
        return "no error"

    async def log_files(self) -> tuple[str, list[str]]:
        """The folder of Serve's logs, and the files that its logger writes."""
        handlers = serve_logger().handlers
        targets = [getattr(handler, "target", handler) for handler in handlers]  # buffered
        files = [str(getattr(target, "baseFilename", "")) for target in targets]
        return str(serve_logs_dir()), [file for file in files if file]

    async def metrics(self) -> str:
        return (await cluster_metrics()).decode()


class Busy:
    """Never responds."""

    async def __call__(self) -> str:
        await asyncio.Event().wait()
        return ""


def application() -> Application:
    """A probe and its callees."""
    callees = serve.deployment(name="callee", num_replicas=CALLEES, ray_actor_options=_OPTIONS)
    probe = serve.deployment(name="probe", ray_actor_options=_OPTIONS)
    bound: Application = probe(Probe).bind(callees(Callee).bind())
    return bound


def busy() -> Application:
    """A deployment that takes one request and queues one."""
    deployment = serve.deployment(
        name="busy", max_ongoing_requests=1, max_queued_requests=1, ray_actor_options=_OPTIONS
    )
    bound: Application = deployment(Busy).bind()
    return bound


class Slow:
    """Answers after a while with the headers that arrived."""

    async def __call__(self, request: Request) -> dict[str, str]:
        await asyncio.sleep(1)
        return dict(request.headers)


def slow() -> Application:
    """A deployment that takes longer than an impatient caller waits."""
    bound: Application = serve.deployment(name="slow", ray_actor_options=_OPTIONS)(Slow).bind()
    return bound
