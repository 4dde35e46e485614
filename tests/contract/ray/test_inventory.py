"""Each private part of Ray in use is there, and a Ray that lacks one is told apart by name."""

from __future__ import annotations

import importlib
import logging
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray.serve._private.long_poll as long_poll
from ray.serve.context import _RequestContext, _serve_request_context
from ray.serve.handle import DeploymentHandle
from ray.serve.request_router import RequestRouter

from serve_app.cli import CommandError
from serve_app.cli.serve import run
from serve_app.deployments.compat.inventory import (
    Attribute,
    Part,
    RayChanged,
    Text,
    changes,
    check,
    parts,
)
from serve_app.deployments.ingress import IngressReplica
from serve_app.deployments.telemetry import join_serve_log, start_telemetry
from serve_app.deployments.tracing import exporter
from serve_app.telemetry.context import (
    current_request_id,
    rename_request,
    set_request_context,
    shared_context,
)
from serve_app.telemetry.metrics import set_collector
from serve_tools.bench import ray_batching

REQUEST = "ray.serve.context:_RequestContext"
PARTS = (*parts(optional=False), *parts(optional=True))


@pytest.mark.parametrize("part", [*PARTS, *ray_batching.PARTS], ids=lambda part: part.path)
def test_ray_has_the_part(part: Part) -> None:
    assert part.problem() is None


def test_every_part_has_a_use() -> None:
    assert all(part.used_for for part in PARTS)


def test_the_installed_ray_is_supported() -> None:
    assert check() == []


class OtherClient:
    """A `LongPollClient` with another constructor."""

    def __init__(self, host_actor: Any, listeners: Any) -> None: ...


@pytest.mark.parametrize(
    ("owner", "name", "replacement", "message"),
    [
        (
            long_poll, "LongPollClient", None,
            "ray.serve._private.long_poll:LongPollClient is missing; used for replica counts",
        ),
        (
            long_poll, "LongPollClient", OtherClient,
            "LongPollClient has no parameter key_listeners, call_in_event_loop, client_id; used",
        ),
        (
            RequestRouter, "_choose_replica_for_request", None,
            "RequestRouter._choose_replica_for_request is missing; used for affinity of decoders",
        ),
        (
            RequestRouter, "_replicas_updated_event", None,
            "RequestRouter has no _replicas_updated_event; used for affinity of decoders",
        ),
        (
            DeploymentHandle, "options", lambda self, *, method_name, session_id: self,
            "DeploymentHandle.options has no parameter _by_reference; used for large calls",
        ),
    ],
)  # fmt: skip
def test_a_changed_ray_is_named(
    monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, replacement: Any, message: str
) -> None:
    before = set(changes(optional=False))
    if replacement is None:
        monkeypatch.delattr(owner, name)
    else:
        monkeypatch.setattr(owner, name, replacement)
    (change,) = set(changes(optional=False)) - before
    assert message in change
    with pytest.raises(RayChanged, match=r"docs/deploy\.md") as raised:
        check()
    assert f"- {change}\n" in str(raised.value)


@pytest.mark.parametrize(
    ("part", "problem"),
    [
        (Attribute("ray.serve._private.gone:x", "x"), "ray.serve._private.gone:x is missing"),
        (Attribute(REQUEST, "x", members=("request_id", "gone")), f"{REQUEST} has no gone"),
        (Attribute(REQUEST, "x", parameters=("gone",)), f"{REQUEST} has no parameter gone"),
        (Text("gone.py", "x", "x"), "gone.py is missing (searched for 'x')"),
        (Text("_version.py", "gone", "x"), "_version.py: 'gone' is missing"),
        (Text("_version.py", "version", "x"), None),
    ],
)
def test_each_kind_of_change(part: Part, problem: str | None) -> None:
    assert part.problem() == problem
    assert _RequestContext(request_id="a").request_id == "a"


def test_the_command_and_the_ingress_do_not_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(long_poll, "LongPollClient")
    with pytest.raises(CommandError, match="LongPollClient is missing"):
        run(SimpleNamespace())  # type: ignore[arg-type]
    with pytest.raises(RayChanged, match="LongPollClient is missing"):
        IngressReplica.__bases__[0](*[None] * 4)  # below what `serve.ingress` adds


OPTIONAL = {
    "ray.serve.context:_serve_request_context": "request ids in logs and calls",
    "ray.serve._private.constants:SERVE_LOGGER_NAME": "our log lines in Serve's log files",
    "ray.serve._private.logging_utils:get_serve_logs_dir": "the folder of trace files",
}


@pytest.mark.parametrize("path", OPTIONAL)
def test_without_an_optional_part_the_start_warns(
    monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    module, _, name = path.partition(":")
    monkeypatch.delattr(importlib.import_module(module), name)
    (warning,) = check()
    assert f"{path} is missing; used for {OPTIONAL[path]}" in warning


def test_without_all_optional_parts_a_replica_starts(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    for path in OPTIONAL:
        module, _, name = path.partition(":")
        monkeypatch.delattr(importlib.import_module(module), name)
    for name in ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"):
        monkeypatch.delenv(name, raising=False)
    place = SimpleNamespace(app_name="sam", deployment="ingress", replica_tag="r")
    monkeypatch.setattr("ray.serve.get_replica_context", lambda: place)
    own = logging.getLogger("serve_app")
    monkeypatch.setattr(own, "parent", logging.getLogger())
    join_serve_log()
    start_telemetry(ingress=True)
    set_collector(None)
    assert own.parent is logging.getLogger()
    assert current_request_id() == ""
    assert exporter() == []
    # The command names them and goes on to what is next: the configuration.
    with pytest.raises(CommandError, match="cannot be read"):
        run(SimpleNamespace(config=tmp_path / "absent.yaml"))  # type: ignore[arg-type]
    printed = capsys.readouterr().err
    assert all(f"{path} is missing" in printed for path in OPTIONAL)


@dataclass(frozen=True)
class OtherContext:
    """A `_RequestContext` without the route."""

    request_id: str = ""
    app_name: str = ""


class NoDataclass:
    """A `_RequestContext` of which no copy can be made."""

    def __init__(self, request_id: str, route: str, app_name: str) -> None:
        self.request_id = request_id


@pytest.mark.parametrize("other", [OtherContext, NoDataclass])
def test_with_another_request_context_no_request_fails(
    monkeypatch: pytest.MonkeyPatch, other: type[Any]
) -> None:
    monkeypatch.setattr("ray.serve.context._RequestContext", other)
    place = SimpleNamespace(app_name="sam", deployment="ingress", replica_tag="r")
    monkeypatch.setattr("ray.serve.get_replica_context", lambda: place)
    if other is OtherContext:
        (warning,) = check()
        assert "_RequestContext has no parameter route; used for request ids" in warning
    set_request_context(None)
    start_telemetry(ingress=True)
    set_collector(None)
    request = _serve_request_context.set(
        other("a", "r", "sam") if other is NoDataclass else other()
    )
    try:
        rename_request("b")
        shared_context()
        assert current_request_id() == ""
    finally:
        _serve_request_context.reset(request)


@pytest.mark.parametrize("name", ["RAY_AUTH_MODE", "RAY_USAGE_STATS_ENABLED"])
def test_what_protects_the_service_is_not_optional(name: str) -> None:
    assert name in {part.text for part in parts(optional=False) if isinstance(part, Text)}
