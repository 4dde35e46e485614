"""The private parts of Ray in use, each with its purpose, and a check that they are unchanged."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import mmap
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from serve_app.deployments.compat.environment import HAPROXY_SWITCHES, SWITCHES


class RayChanged(RuntimeError):
    """The installed Ray lacks parts that this project relies on; the message names them."""


@dataclass(frozen=True, slots=True)
class Attribute:
    """An attribute of one of Ray's modules.

    Attributes:
        path: ``module:qualified.name``.
        used_for: What breaks without it.
        parameters: Parameters that the callable must have.
        members: Attributes or dataclass fields that the class must have.
    """

    path: str
    used_for: str
    parameters: tuple[str, ...] = ()
    members: tuple[str, ...] = ()

    def load(self) -> Any:
        """The attribute itself.

        Raises:
            ImportError: Its module is missing.
            AttributeError: The module lacks it.
        """
        module, _, names = self.path.partition(":")
        return _resolve(module, names)

    def problem(self) -> str | None:
        """What the installed Ray has changed; None: nothing."""
        try:
            found = self.load()
        except (ImportError, AttributeError):
            return f"{self.path} is missing"
        known = inspect.signature(found).parameters if self.parameters else {}
        if missing := [name for name in self.parameters if name not in known]:
            return f"{self.path} has no parameter {', '.join(missing)}"
        if missing := [name for name in self.members if not _has_member(found, name)]:
            return f"{self.path} has no {', '.join(missing)}"
        return None


@dataclass(frozen=True, slots=True)
class Text:
    """A text in one of Ray's files: a log or span text, a dictionary key, a variable's name.

    Attributes:
        file: Path below the package ``ray``.
        text: What it must contain.
        used_for: What breaks without it.
    """

    file: str
    text: str
    used_for: str

    @property
    def path(self) -> str:
        return f"{self.file}: {self.text!r}"

    def problem(self) -> str | None:
        """What the installed Ray has changed; None: nothing."""
        try:
            with (_ray_folder() / self.file).open("rb") as file:
                content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except (OSError, ValueError):
            return f"{self.file} is missing (searched for {self.text!r})"
        with content:
            return None if content.find(self.text.encode()) >= 0 else f"{self.path} is missing"


Part = Attribute | Text

_COUNTS = "replica counts of the variants (deployments.watch)"
LONG_POLL_CLIENT = Attribute(
    "ray.serve._private.long_poll:LongPollClient",
    _COUNTS,
    parameters=("host_actor", "key_listeners", "call_in_event_loop", "client_id"),
)
LONG_POLL_TOPICS = Attribute(
    "ray.serve._private.long_poll:LongPollNamespace", _COUNTS, members=("DEPLOYMENT_TARGETS",)
)
DEPLOYMENT_ID = Attribute(
    "ray.serve._private.common:DeploymentID", _COUNTS, parameters=("name", "app_name")
)
CONTROLLER_NAME = Attribute("ray.serve._private.constants:SERVE_CONTROLLER_NAME", _COUNTS)
SERVE_NAMESPACE = Attribute("ray.serve._private.constants:SERVE_NAMESPACE", _COUNTS)

_REQUEST = "request ids in logs and calls (deployments.telemetry)"
REQUEST_CONTEXT = Attribute(
    "ray.serve.context:_RequestContext", _REQUEST, parameters=("request_id", "route", "app_name")
)
CURRENT_REQUEST = Attribute("ray.serve.context:_serve_request_context", _REQUEST)

SERVE_LOGGER = Attribute(
    "ray.serve._private.constants:SERVE_LOGGER_NAME", "our log lines in Serve's log files"
)
SERVE_LOGS_DIR = Attribute(
    "ray.serve._private.logging_utils:get_serve_logs_dir", "the folder of trace files"
)
REQUEST_SPAN = Text(
    "serve/_private/replica.py",
    "replica_handle_request ",
    "one trace per request (deployments.tracing)",
)

TOOL_PARTS = (
    Attribute(
        "ray.serve.batching:_BatchQueue._warn_if_max_batch_size_exceeds_max_ongoing_requests",
        "@serve.batch outside of a replica (the benchmark of batchers)",
    ),
)
"""Parts that only tools use: not checked at start."""

_ROUTER = "affinity of decoders (deployments.affinity)"
_AFFINITY = (
    Attribute(
        "ray.serve.request_router:RequestRouter._choose_replica_for_request",
        _ROUTER,
        parameters=("pending_request", "is_retry"),
    ),
    Attribute(
        "ray.serve.request_router:RequestRouter._select_from_candidate_replicas",
        _ROUTER,
        parameters=("candidates", "backoff_index"),
    ),
    Attribute("ray.serve.request_router:RequestRouter._backoff", _ROUTER, parameters=("attempt",)),
    Attribute(
        "ray.serve.request_router:RequestRouter",
        _ROUTER,
        members=("_replicas_updated_event", "curr_replicas", "replica_queue_len_cache"),
    ),
    Attribute(
        "ray.serve.request_router:PendingRequest",
        _ROUTER,
        members=("metadata", "routing_context"),
    ),
    Attribute(
        "ray.serve._private.request_router.common:RequestRoutingContext",
        _ROUTER,
        members=("should_backoff",),
    ),
    Attribute("ray.serve._private.common:RequestMetadata", _ROUTER, members=("session_id",)),
    Attribute(
        "ray.serve.request_router:RunningReplica",
        _ROUTER,
        members=("replica_id", "max_ongoing_requests"),
    ),
    Attribute("ray.serve.request_router:ReplicaID", _ROUTER, members=("unique_id",)),
    Attribute(
        "ray.serve._private.request_router.common:ReplicaQueueLengthCache.get",
        _ROUTER,
        parameters=("replica_id",),
    ),
)

_METRICS = "GET /metrics over all nodes (deployments.metrics)"

# Public, but newer than the other parts: they set the oldest Ray.
_NEW = (
    Attribute(
        "ray.serve:deployment",
        "rolling updates of the ingress (graphs.nodes)",
        parameters=("max_surge_percent",),
    ),
    Attribute(
        "ray.serve.config:AutoscalingPolicy",
        "the scaling policy (deployments.autoscaling)",
        members=("policy_function", "policy_kwargs"),
    ),
)

PARTS: tuple[Part, ...] = (
    LONG_POLL_CLIENT,
    LONG_POLL_TOPICS,
    DEPLOYMENT_ID,
    CONTROLLER_NAME,
    SERVE_NAMESPACE,
    Attribute(
        "ray.serve._private.common:DeploymentTargetInfo", _COUNTS, members=("running_replicas",)
    ),
    REQUEST_CONTEXT,
    CURRENT_REQUEST,
    SERVE_LOGGER,
    SERVE_LOGS_DIR,
    REQUEST_SPAN,
    *_AFFINITY,
    *_NEW,
    Attribute(
        "ray.serve.handle:DeploymentHandle.options",
        "large calls past gRPC's limit on messages (deployments.calls)",
        parameters=("_by_reference", "session_id", "method_name"),
    ),
    Attribute(
        "ray.serve.config:AutoscalingPolicy.get_policy",
        "policies that a deployment names itself (deployments.autoscaling)",
    ),
    Text("_raylet.so", "NodeManagerAddress", _METRICS),
    Text("_raylet.so", "MetricsExportPort", _METRICS),
    Text(
        "serve/_private/replica.py",
        "Request dropped due to backpressure",
        "the proxy's health check keeps a full service (serve_app/edge)",
    ),
    *(
        Text(
            "serve/_private/haproxy_templates.py",
            text,
            "corrections to the configuration of Ray's HAProxy (compat.environment)",
        )
        for text in ("\nfrontend http_frontend\n", "bind *:", " mode 666 ")
    ),
)


def parts() -> Iterable[Part]:
    """All parts that the service uses on this platform."""
    yield from PARTS
    for name, (where, used_for) in SWITCHES.items():
        if sys.platform != "linux" and name in HAPROXY_SWITCHES:
            continue
        if name.startswith("RAY_SERVE_"):
            yield Attribute(f"ray.serve._private.constants:{name}", used_for)
        else:
            # Ray's C++ settings have no prefix: RAY_worker_niceness sets worker_niceness.
            text = name if name.isupper() else name.removeprefix("RAY_")
            yield Text(where, text, used_for)


def changes() -> list[str]:
    """What the installed Ray has changed of these parts, and what each is used for."""
    return [f"{found}; used for {part.used_for}" for part in parts() if (found := part.problem())]


def check() -> None:
    """Compare the installed Ray with what this project relies on; needs no cluster.

    Raises:
        RayChanged: Some part is missing or has another signature.
    """
    if found := changes():
        raise RayChanged(
            "\n- ".join([f"Ray {version('ray')} has changed parts that this service uses:", *found])
            + "\nInstall a supported Ray (docs/deploy.md, Ray versions) or adapt "
            "serve_app/deployments/compat."
        )


def _resolve(module: str, names: str) -> Any:
    found: Any = importlib.import_module(module)
    for name in names.split("."):
        found = getattr(found, name)
    return found


def _has_member(found: Any, name: str) -> bool:
    declared = {
        *getattr(found, "__dataclass_fields__", ()),
        *getattr(found, "model_fields", ()),
        *getattr(found, "_fields", ()),
    }
    return name in declared or hasattr(found, name)


@cache
def _ray_folder() -> Path:
    spec = importlib.util.find_spec("ray")
    if spec is None or spec.origin is None:
        raise RayChanged("Ray is not installed")
    return Path(spec.origin).parent
