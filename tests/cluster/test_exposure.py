"""What of a running service can be reached from other machines, and who gets in there."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
from ray.serve.generated.serve_pb2 import ASGIRequest

from .conftest import Served
from .ray_cluster import session_members
from .sockets import Listener, listeners

pytestmark = [pytest.mark.cluster, pytest.mark.weights]  # those of the configuration it looks at

SERVES_GRPC = "/ray.serve.ASGIService/HandleRequest"
TOKEN_PROTECTED = {"ray::ServeReplica"}
"""What may listen beyond loopback (SECURITY.md): Serve's gRPC port, at a fixed address."""


class _Canary:
    """Touches a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self._path,)


@pytest.fixture
def beyond(served: Served) -> set[Listener]:
    found = listeners(session_members(served.cluster.session))
    assert {port for entry in found for port in [entry.port]} >= {
        int(served.url.rpartition(":")[2]), int(served.cluster.dashboard.rpartition(":")[2]),
    }, "the test sees the service's own ports"  # fmt: skip
    return {entry for entry in found if entry.beyond_loopback}


def test_only_token_protected_ports_listen_beyond_loopback(beyond: set[Listener]) -> None:
    kinds = {kind for kind in TOKEN_PROTECTED for e in beyond if e.process.startswith(kind)}
    unexpected = {e for e in beyond if not e.process.startswith(tuple(TOKEN_PROTECTED))}
    assert unexpected == set()
    assert kinds == TOKEN_PROTECTED, "the list names what is there, and nothing else"


def call(port: int, method: str, message: bytes, token: str | None) -> grpc.StatusCode:
    metadata = [("authorization", f"Bearer {token}")] if token else []
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        ask = channel.unary_unary(
            method, request_serializer=lambda m: m, response_deserializer=lambda m: m
        )
        try:
            ask(message, metadata=metadata, timeout=300)
        except grpc.RpcError as exc:
            code: grpc.StatusCode = exc.code()
            return code
        return grpc.StatusCode.OK


def test_serves_grpc_unpickles_nothing_without_the_token(
    served: Served, beyond: set[Listener], tmp_path: Path
) -> None:
    token = served.cluster.environment["RAY_AUTH_TOKEN"]
    for entry in beyond:
        canary = tmp_path / str(entry.port)
        message = ASGIRequest(
            pickled_request_metadata=pickle.dumps(_Canary(canary))
        ).SerializeToString()
        for wrong in (None, "0" * len(token)):
            told = call(entry.port, SERVES_GRPC, message, wrong)
            assert told is grpc.StatusCode.UNAUTHENTICATED, entry
            assert not canary.exists(), entry
        # The same call with the token is taken: it is the token that keeps it out.
        told = call(entry.port, SERVES_GRPC, message, token)
        assert told is not grpc.StatusCode.UNAUTHENTICATED, entry
        assert canary.exists(), entry


@pytest.mark.parametrize("method", ["/ray.rpc.JobInfoGcsService/GetAllJobInfo"])
def test_gcs_refuses_calls_without_the_token(served: Served, method: str) -> None:
    port = int(served.cluster.address.rpartition(":")[2])
    token = served.cluster.environment["RAY_AUTH_TOKEN"]
    assert call(port, method, b"", None) is grpc.StatusCode.UNAUTHENTICATED
    assert call(port, method, b"", "wrong") is grpc.StatusCode.UNAUTHENTICATED
    assert call(port, method, b"", token) is grpc.StatusCode.OK


def test_a_driver_without_the_token_does_not_join(served: Served) -> None:
    here = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    here |= {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "RAY_gcs_rpc_server_connect_timeout_s": "2"}
    tries: list[dict[str, str]] = [
        {"RAY_AUTH_MODE": "disabled"},
        {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0" * 32},
    ]
    joining = [
        subprocess.Popen(
            [sys.executable, "-c",
             f"import ray; ray.init(address={served.cluster.address!r}); print('joined')"],
            env={**here, **environment}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )
        for environment in tries
    ]  # fmt: skip
    for process in joining:
        told = process.communicate(timeout=300)[0].decode(errors="replace")
        assert process.returncode != 0
        assert "joined" not in told
        assert "authentication" in told.lower()


@pytest.fixture
def dashboard(served: Served) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=served.cluster.dashboard, trust_env=False, timeout=300) as client:
        yield client


SUBMISSION = {"entrypoint": "echo never"}


@pytest.mark.parametrize(
    ("headers", "status"),
    [({}, 401), ({"authorization": "Bearer " + "0" * 32}, 403),
     ({"x-ray-authorization": "Bearer x"}, 403)],
)  # fmt: skip
def test_cve_2023_48022_jobs_need_the_token(
    served: Served, dashboard: httpx.Client, headers: dict[str, str], status: int
) -> None:
    """Ray's job API ran commands of whoever reached it."""
    assert dashboard.post("/api/jobs/", json=SUBMISSION, headers=headers).status_code == status
    for path in ("/api/jobs/", "/api/serve/applications/", "/api/v0/actors", "/nodes?view=summary"):
        assert dashboard.get(path, headers=headers).status_code == status, path
    told = dashboard.put("/api/serve/applications/", json={"applications": []}, headers=headers)
    assert told.status_code == status
    assert served.cluster.applications(), "what ran goes on"


@pytest.mark.parametrize("agent", ["Mozilla/5.0 (X11; Linux) Firefox/140.0", "curl/8"])
def test_cve_2025_62593_a_rebound_name_gets_nowhere(
    served: Served, dashboard: httpx.Client, agent: str
) -> None:
    """A page whose name is pointed at 127.0.0.1 sends jobs from the visitor's browser."""
    rebound = {"host": "evil.example", "origin": "http://evil.example", "user-agent": agent}
    told = dashboard.post("/api/jobs/", json=SUBMISSION, headers=rebound)
    assert told.status_code in (401, 403, 405)
    assert dashboard.get("/api/jobs/", headers=rebound).status_code in (401, 403, 405)


def test_the_token_is_in_no_file_of_the_cluster(served: Served) -> None:
    token = served.cluster.environment["RAY_AUTH_TOKEN"].encode()
    holding = [
        path
        for path in served.cluster.folder.rglob("*")
        if path.is_file() and not path.is_symlink() and path.stat().st_size < 2**26
        if token in path.read_bytes()
    ]
    assert holding == []


def test_haproxys_admin_socket_is_for_its_user_alone(served: Served) -> None:
    sockets = [path for path in served.cluster.folder.rglob("haproxy*") if path.is_socket()]
    assert sockets
    for path in sockets:
        assert path.stat().st_mode & 0o077 == 0, path
