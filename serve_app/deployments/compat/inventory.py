"""The private parts of Ray in use, each with its purpose, and a check that they are unchanged."""

from __future__ import annotations

import importlib
import inspect
import mmap
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
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
    used_for: str
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
    used_for: str

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

Table = Mapping[str, Mapping[str, tuple[str, ...]]]
"""By use: callables, marked by (), with parameters; other attributes with members; files with
texts."""

_REQUIRED: Table = {
    "replica counts of the variants (deployments.watch)": {
        "ray.serve._private.long_poll:LongPollClient()": (
            "host_actor", "key_listeners", "call_in_event_loop", "client_id"
        ),
        "ray.serve._private.long_poll:LongPollNamespace": ("DEPLOYMENT_TARGETS",),
        "ray.serve._private.common:DeploymentID()": ("name", "app_name"),
        "ray.serve._private.common:DeploymentTargetInfo": ("running_replicas",),
        "ray.serve._private.constants:SERVE_CONTROLLER_NAME": (),
        "ray.serve._private.constants:SERVE_NAMESPACE": (),
    },
    "affinity of decoders (compat.affinity)": {
        "ray.serve.request_router:RequestRouter": (
            "_replicas_updated_event", "curr_replicas", "replica_queue_len_cache"
        ),
        "ray.serve.request_router:RequestRouter._choose_replica_for_request()": (
            "pending_request", "is_retry"
        ),
        "ray.serve.request_router:RequestRouter._select_from_candidate_replicas()": (
            "candidates", "backoff_index"
        ),
        "ray.serve.request_router:RequestRouter._backoff()": ("attempt",),
        "ray.serve.request_router:PendingRequest": ("metadata", "routing_context"),
        "ray.serve.request_router:RunningReplica": ("replica_id", "max_ongoing_requests"),
        "ray.serve.request_router:ReplicaID": ("unique_id",),
        "ray.serve._private.request_router.common:RequestRoutingContext": ("should_backoff",),
        "ray.serve._private.request_router.common:ReplicaQueueLengthCache.get()": ("replica_id",),
        "ray.serve._private.common:RequestMetadata": ("session_id",),
    },
    # Public, but newer than the other parts: these two set the oldest Ray.
    "rolling updates of the ingress (graphs.nodes)": {
        "ray.serve:deployment()": ("max_surge_percent",),
    },
    "the scaling policy (deployments.autoscaling)": {
        "ray.serve.config:AutoscalingPolicy": ("policy_function", "policy_kwargs"),
    },
    "policies that a deployment names itself (deployments.autoscaling)": {
        "ray.serve.config:AutoscalingPolicy": ("get_policy",),
    },
    "large calls past gRPC's limit on messages (deployments.calls)": {
        "ray.serve.handle:DeploymentHandle.options()": (
            "_by_reference", "session_id", "method_name"
        ),
    },
    "errors of Ray's proxies in the service's form (compat.proxy)": {
        "ray.serve._private.http_util:configure_http_middlewares()": ("http_options",),
        "serve/_private/replica.py": ("configure_http_middlewares(", "timed out after "),
        "serve/_private/proxy.py": ("configure_http_middlewares(",),
    },
    "the proxy's health check keeps a full service (serve_app/edge)": {
        "serve/_private/replica.py": ("Request dropped due to backpressure",),
    },
    "corrections to the configuration of Ray's HAProxy (compat.environment)": {
        "serve/_private/haproxy_templates.py": (
            "\nfrontend http_frontend\n", "\ndefaults\n", "bind *:", " mode 666 ",
            " errorfile 503 ", "http-request return status 404 content-type text/plain "
        ),
    },
}  # fmt: skip

_OPTIONAL: Table = {
    "request ids in logs and calls (deployments.telemetry)": {
        "ray.serve.context:_RequestContext()": ("request_id", "route", "app_name"),
        "ray.serve.context:_serve_request_context": (),
    },
    "our log lines in Serve's log files (deployments.telemetry)": {
        "ray.serve._private.constants:SERVE_LOGGER_NAME": (),
    },
    "the folder of trace files (deployments.tracing)": {
        "ray.serve._private.logging_utils:get_serve_logs_dir": (),
    },
    "one trace per request (deployments.tracing)": {
        "serve/_private/replica.py": (REQUEST_SPAN,),
    },
    "GET /metrics over all nodes (deployments.metrics)": {
        "_raylet.so": ("NodeManagerAddress", "MetricsExportPort"),
    },
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
    for used_for, places in (_OPTIONAL if optional else _REQUIRED).items():
        for place, names in places.items():
            if ":" not in place:
                yield from (Text(place, text, used_for) for text in names)
            elif place.endswith("()"):
                yield Attribute(place.removesuffix("()"), used_for, parameters=names)
            else:
                yield Attribute(place, used_for, members=names)
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
