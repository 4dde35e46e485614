"""Private parts of Ray that replicas use while they run.

Private modules are imported where they are used, which raises ImportError if this Ray lacks them:
this module can be imported, and `inventory.check` can name what is missing, with any Ray.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import grpc
import ray
from ray import serve
from ray.exceptions import ObjectLostError, RayActorError
from ray.serve.handle import DeploymentHandle

_GONE = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)
"""Status of a gRPC call if its replica dies or closes its server."""


def serve_logger() -> logging.Logger:
    """Serve's logger: its handlers write the replica's log file and add request ids."""
    from ray.serve._private.constants import SERVE_LOGGER_NAME

    return logging.getLogger(SERVE_LOGGER_NAME)


def serve_logs_dir() -> Path:
    """The folder of Serve's log files on this node."""
    from ray.serve._private.logging_utils import get_serve_logs_dir

    return Path(get_serve_logs_dir())


def by_reference(handle: DeploymentHandle[Any], method_name: str) -> DeploymentHandle[Any]:
    """A handle that makes actor calls even if Serve uses gRPC between replicas.

    Messages over gRPC are limited in size, and object references inside them would never be
    released.
    """
    return handle.options(method_name=method_name, _by_reference=True)


def is_replica_lost(error: BaseException) -> bool:
    """Whether a call failed because its replica died, by actor call or gRPC."""
    if isinstance(error, grpc.aio.AioRpcError):
        return error.code() in _GONE
    return isinstance(error, RayActorError | ObjectLostError)


def watch_replica_counts(
    deployments: Iterable[str], on_change: Callable[[str, int], None]
) -> object:
    """Follow the numbers of running replicas of this application's deployments.

    Uses the long poll of Serve's own routers: polling ``serve.status()`` costs some percent of a
    core here and in the controller.

    Args:
        on_change: Called in the running event loop with a name and its count.

    Returns:
        What must be kept alive for as long as the counts are wanted.
    """
    from ray.serve._private.common import DeploymentID
    from ray.serve._private.constants import SERVE_CONTROLLER_NAME, SERVE_NAMESPACE
    from ray.serve._private.long_poll import LongPollClient, LongPollNamespace

    application = serve.get_replica_context().app_name

    def changed(name: str, targets: Any) -> None:
        on_change(name, len(targets.running_replicas))

    topic = LongPollNamespace.DEPLOYMENT_TARGETS
    listeners: dict[Any, Any] = {
        (topic, DeploymentID(name, application)): partial(changed, name) for name in deployments
    }
    return LongPollClient(
        ray.get_actor(SERVE_CONTROLLER_NAME, namespace=SERVE_NAMESPACE),
        listeners,
        call_in_event_loop=asyncio.get_running_loop(),
        client_id=f"replica-counts:{application}",
    )


class RequestContext:
    """The current request as Serve knows it: its id is in log lines and passed on with calls.

    Raises:
        ImportError: this Ray has none, or another one, with which each request would fail.
    """

    def __init__(self) -> None:
        from ray.serve.context import _RequestContext, _serve_request_context

        try:
            replace(_RequestContext(request_id="", route="", app_name=""), request_id="id")
        except TypeError as exc:
            raise ImportError("Ray has changed its request context") from exc
        self._current = _serve_request_context
        self._type = _RequestContext

    def request_id(self) -> str:
        """The id; empty outside of a request."""
        request = self._current.get()
        return "" if request is None else str(request.request_id)

    def rename(self, request_id: str) -> None:
        """Give the current request another id."""
        request = self._current.get()
        if request is not None and request.request_id != request_id:
            self._current.set(replace(request, request_id=request_id))

    def carry(self) -> Callable[[], None]:
        """Return a function that makes another context part of the request, but not cancelled."""
        request = self._current.get()

        def carry() -> None:
            if request is not None:
                # Without the internal id, by which Serve finds the calls to cancel.
                self._current.set(
                    self._type(
                        request_id=request.request_id,
                        route=request.route,
                        app_name=request.app_name,
                    )
                )

        return carry


def load_policy(policy: Any) -> Callable[..., Any]:
    """The function, or an instance of the class, that an ``AutoscalingPolicy`` names.

    Serve's controller may not be able to import it: then only Ray's pickled copy has it.
    """
    found = policy.get_policy()
    made = found(**policy.policy_kwargs) if inspect.isclass(found) else found
    return cast("Callable[..., Any]", made)


def metrics_endpoints() -> list[tuple[str, int]]:
    """Host and port of the metrics agent of each live node."""
    nodes: list[dict[str, Any]] = cast(Any, ray).nodes()
    return [
        (node["NodeManagerAddress"], node["MetricsExportPort"])
        for node in nodes
        if node.get("Alive") and node.get("MetricsExportPort") and "NodeManagerAddress" in node
    ]
