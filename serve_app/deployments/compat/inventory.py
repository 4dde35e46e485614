"""The private parts of Ray in use, each with its purpose, and a check that they are unchanged."""

from __future__ import annotations

import importlib
import inspect
import mmap
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import ray

from serve_app.deployments.compat.environment import HAPROXY_SWITCHES, SWITCHES


class RayChanged(RuntimeError):
    """The installed Ray lacks parts that this project relies on; the message names them."""


@dataclass(frozen=True, slots=True)
class Attribute:
    """A callable of Ray with some parameters, or another attribute with some members."""

    path: str  # ``module:qualified.name``
    used_for: str = ""
    parameters: tuple[str, ...] = ()
    members: tuple[str, ...] = ()

    def problem(self) -> str | None:
        """What the installed Ray has changed; None: nothing."""
        module, _, names = self.path.partition(":")
        try:
            found: Any = importlib.import_module(module)
            for name in names.split("."):
                found = getattr(found, name)
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
    """A text in one of Ray's files: a log or span text, a dictionary key, a variable's name."""

    file: str  # below the package ``ray``
    text: str
    used_for: str = ""

    @property
    def path(self) -> str:
        return f"{self.file}: {self.text!r}"

    def problem(self) -> str | None:
        """What the installed Ray has changed; None: nothing."""
        try:
            with (Path(ray.__file__).parent / self.file).open("rb") as file:
                content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except (OSError, ValueError):
            return f"{self.file} is missing (searched for {self.text!r})"
        with content:
            return None if content.find(self.text.encode()) >= 0 else f"{self.path} is missing"


Part = Attribute | Text

REQUEST_SPAN = "replica_handle_request "

_REQUIRED: Mapping[str, Sequence[Part]] = {
    "replica counts of the variants (deployments.watch)": [
        Attribute(
            "ray.serve._private.long_poll:LongPollClient",
            parameters=("host_actor", "key_listeners", "call_in_event_loop", "client_id"),
        ),
        Attribute(
            "ray.serve._private.long_poll:LongPollNamespace", members=("DEPLOYMENT_TARGETS",)
        ),
        Attribute("ray.serve._private.common:DeploymentID", parameters=("name", "app_name")),
        Attribute("ray.serve._private.common:DeploymentTargetInfo", members=("running_replicas",)),
        Attribute("ray.serve._private.constants:SERVE_CONTROLLER_NAME"),
        Attribute("ray.serve._private.constants:SERVE_NAMESPACE"),
    ],
    "affinity of decoders (compat.affinity)": [
        Attribute(
            "ray.serve.request_router:RequestRouter",
            members=("_replicas_updated_event", "curr_replicas", "replica_queue_len_cache"),
        ),
        Attribute(
            "ray.serve.request_router:RequestRouter._choose_replica_for_request",
            parameters=("pending_request", "is_retry"),
        ),
        Attribute(
            "ray.serve.request_router:RequestRouter._select_from_candidate_replicas",
            parameters=("candidates", "backoff_index"),
        ),
        Attribute("ray.serve.request_router:RequestRouter._backoff", parameters=("attempt",)),
        Attribute(
            "ray.serve.request_router:PendingRequest", members=("metadata", "routing_context")
        ),
        Attribute(
            "ray.serve.request_router:RunningReplica",
            members=("replica_id", "max_ongoing_requests"),
        ),
        Attribute("ray.serve.request_router:ReplicaID", members=("unique_id",)),
        Attribute(
            "ray.serve._private.request_router.common:RequestRoutingContext",
            members=("should_backoff",),
        ),
        Attribute(
            "ray.serve._private.request_router.common:ReplicaQueueLengthCache.get",
            parameters=("replica_id",),
        ),
        Attribute("ray.serve._private.common:RequestMetadata", members=("session_id",)),
    ],
    # Public, but newer than the other parts: these two set the oldest Ray.
    "rolling updates of the ingress (graphs.nodes)": [
        Attribute("ray.serve:deployment", parameters=("max_surge_percent",)),
    ],
    "the scaling policy (deployments.autoscaling)": [
        Attribute(
            "ray.serve.config:AutoscalingPolicy", members=("policy_function", "policy_kwargs")
        ),
    ],
    "policies that a deployment names itself (deployments.autoscaling)": [
        Attribute("ray.serve.config:AutoscalingPolicy", members=("get_policy",)),
    ],
    "large calls past gRPC's limit on messages (deployments.calls)": [
        Attribute(
            "ray.serve.handle:DeploymentHandle.options",
            parameters=("_by_reference", "session_id", "method_name"),
        ),
    ],
    "errors of Ray's proxies in the service's form (compat.proxy)": [
        Attribute(
            "ray.serve._private.http_util:configure_http_middlewares",
            parameters=("http_options",),
        ),
        Text("serve/_private/replica.py", "configure_http_middlewares("),
        Text("serve/_private/replica.py", "timed out after "),
        Text("serve/_private/proxy.py", "configure_http_middlewares("),
    ],
    "the proxy's health check keeps a full service (serve_app/edge)": [
        Text("serve/_private/replica.py", "Request dropped due to backpressure"),
    ],
    "corrections to the configuration of Ray's HAProxy (compat.environment)": [
        Text("serve/_private/haproxy_templates.py", "\nfrontend http_frontend\n"),
        Text("serve/_private/haproxy_templates.py", "\ndefaults\n"),
        Text("serve/_private/haproxy_templates.py", "bind *:"),
        Text("serve/_private/haproxy_templates.py", " errorfile 503 "),
        Text(
            "serve/_private/haproxy_templates.py",
            "http-request return status 404 content-type text/plain ",
        ),
        Text("serve/_private/haproxy_templates.py", " mode 666 "),
    ],
}

_OPTIONAL: Mapping[str, Sequence[Part]] = {
    "request ids in logs and calls (deployments.telemetry)": [
        Attribute(
            "ray.serve.context:_RequestContext", parameters=("request_id", "route", "app_name")
        ),
        Attribute("ray.serve.context:_serve_request_context"),
    ],
    "our log lines in Serve's log files (deployments.telemetry)": [
        Attribute("ray.serve._private.constants:SERVE_LOGGER_NAME"),
    ],
    "the folder of trace files (deployments.tracing)": [
        Attribute("ray.serve._private.logging_utils:get_serve_logs_dir"),
    ],
    "one trace per request (deployments.tracing)": [
        Text("serve/_private/replica.py", REQUEST_SPAN),
    ],
    "GET /metrics over all nodes (deployments.metrics)": [
        Text("_raylet.so", "NodeManagerAddress"),
        Text("_raylet.so", "MetricsExportPort"),
    ],
}
"""Serving works without these, but not what they are used for."""

_OPTIONAL_SWITCHES = {
    "RAY_worker_niceness",
    "RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD",
    "RAY_SERVE_RUN_ROUTER_IN_SEPARATE_LOOP",
    "RAY_SERVE_USE_GRPC_BY_DEFAULT",
    "RAY_SERVE_HAPROXY_NBTHREAD",
}
"""They only affect speed."""

_READ_BY = {
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "_private/ray_constants.py",
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "_private/ray_constants.py",
    "RAY_USAGE_STATS_ENABLED": "_common/usage/usage_constants.py",
}
"""Files of Ray that read a variable; Ray's C++ reads the others that are not of Serve."""


def parts(*, optional: bool) -> Iterator[Part]:
    """The optional or the required parts that the service uses on this platform."""
    for used_for, found in (_OPTIONAL if optional else _REQUIRED).items():
        yield from (replace(part, used_for=used_for) for part in found)
    for name, used_for in SWITCHES.items():
        if (name in _OPTIONAL_SWITCHES) != optional:
            continue
        if sys.platform != "linux" and name in HAPROXY_SWITCHES:
            continue
        if name.startswith("RAY_SERVE_"):
            yield Attribute(f"ray.serve._private.constants:{name}", used_for)
        else:
            # Ray's C++ settings have no prefix: RAY_worker_niceness sets worker_niceness.
            text = name if name.isupper() else name.removeprefix("RAY_")
            yield Text(_READ_BY.get(name, "_raylet.so"), text, used_for)


def changes(*, optional: bool) -> list[str]:
    """What the installed Ray has changed of these parts, and what each is used for."""
    return [
        f"{found}; used for {part.used_for}"
        for part in parts(optional=optional)
        if (found := part.problem())
    ]


def check() -> list[str]:
    """Compare the installed Ray with what this project relies on; needs no cluster.

    Returns:
        A warning for each optional part that is missing or has another signature.

    Raises:
        RayChanged: The same of a required part.
    """
    if found := changes(optional=False):
        raise RayChanged(
            "\n- ".join([f"Ray {version('ray')} has changed parts that this service uses:", *found])
            + "\nInstall a supported Ray (docs/deploy.md, Ray versions) or adapt "
            "serve_app/deployments/compat."
        )
    return [
        f"Ray {version('ray')} has changed an optional part: {change}"
        for change in changes(optional=True)
    ]


def _has_member(found: Any, name: str) -> bool:
    declared = {
        *getattr(found, "__dataclass_fields__", ()),
        *getattr(found, "model_fields", ()),
        *getattr(found, "_fields", ()),
    }
    return name in declared or hasattr(found, name)
