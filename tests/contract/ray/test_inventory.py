"""Each private part of Ray in use is there, and a Ray that lacks one is told apart by name."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import ray.serve._private.long_poll as long_poll
from ray.serve.context import _RequestContext
from ray.serve.handle import DeploymentHandle
from ray.serve.request_router import RequestRouter

from serve_app.cli import CommandError
from serve_app.cli.serve import run
from serve_app.deployments.compat import inventory
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

REQUEST = "ray.serve.context:_RequestContext"


@pytest.mark.parametrize("part", [*parts(), *inventory.TOOL_PARTS], ids=lambda part: part.path)
def test_ray_has_the_part(part: Part) -> None:
    assert part.problem() is None


def test_every_declared_part_is_checked_at_start() -> None:
    declared = {
        id(value) for value in vars(inventory).values() if isinstance(value, Attribute | Text)
    }
    assert declared <= {id(part) for part in inventory.PARTS}
    assert all(part.used_for for part in parts())


def test_the_installed_ray_is_supported() -> None:
    check()


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
    before = set(changes())
    if replacement is None:
        monkeypatch.delattr(owner, name)
    else:
        monkeypatch.setattr(owner, name, replacement)
    (change,) = set(changes()) - before
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
