"""Starting, reloading and stopping lose no request; TLS; invalid settings."""

from __future__ import annotations

import contextlib
import datetime
import io
import os
import signal
import socket
import ssl
import subprocess
import sys
from contextlib import ExitStack
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from serve_app.__main__ import main

from ..ports import free_ports
from .running import (
    HANG_GUARD_S,
    LONG_TIMEOUTS,
    Backend,
    RawClient,
    RunningEdge,
    get_from,
    is_ready,
    wait_until,
)
from .test_bounds import gated_edge, send_request, statuses_of


def test_sigterm_drains() -> None:
    with gated_edge(command=True) as (gate, edge), ExitStack() as stack:
        client = send_request(stack, edge)
        wait_until(lambda: gate.in_flight == 1, "a request is in flight")
        edge.process.send_signal(signal.SIGTERM)
        wait_until(lambda: not edge.listens(), "new connections are rejected")
        assert edge.process.poll() is None
        gate.released.set()
        assert client.response()[0] == 200
        assert edge.process.wait(HANG_GUARD_S) == 0


def test_a_second_signal_ends_the_edge_at_once() -> None:
    with gated_edge(command=True) as (gate, edge), ExitStack() as stack:
        client = send_request(stack, edge)
        wait_until(lambda: gate.in_flight == 1, "a request is in flight")
        edge.process.send_signal(signal.SIGTERM)
        wait_until(lambda: not edge.listens(), "new connections are rejected")
        edge.process.send_signal(signal.SIGTERM)
        assert client.response()[0] == 0
        assert edge.process.wait(HANG_GUARD_S) == 0


def test_draining_ends_after_drain_s() -> None:
    with gated_edge(command=True, drain_s=0.5) as (gate, edge), ExitStack() as stack:
        send_request(stack, edge)
        wait_until(lambda: gate.in_flight == 1, "a request is in flight")
        edge.process.send_signal(signal.SIGTERM)
        assert edge.process.wait(HANG_GUARD_S) == 0


def test_a_reload_applies_new_settings_and_loses_no_request() -> None:
    with gated_edge(command=True) as (gate, edge), ExitStack() as stack:
        client = send_request(stack, edge)
        wait_until(lambda: gate.in_flight == 1, "a request is in flight")
        (old,) = edge.haproxy_pids()
        edge.settings["denied_paths"] = ["/healthz"]
        edge.write_settings()
        edge.process.send_signal(signal.SIGHUP)
        denied = f"{edge.url}/healthz"
        wait_until(lambda: len(edge.haproxy_pids()) == 2, "the new process runs beside the old one")
        gate.released.set()
        assert client.response()[0] == 200
        wait_until(lambda: old not in edge.haproxy_pids(), "the old process has exited")
        wait_until(
            lambda: httpx.get(denied, trust_env=False, timeout=HANG_GUARD_S).status_code == 404,
            "the new setting is applied",
        )


def test_a_reload_with_invalid_settings_changes_nothing() -> None:
    with gated_edge(command=True) as (_, edge):
        before = edge.haproxy_pids()
        edge.settings["bind"] = "not an address"
        edge.write_settings()
        edge.process.send_signal(signal.SIGHUP)
        wait_until(lambda: "not reloaded" in edge.log.read_text(), "the error is reported")
        assert edge.haproxy_pids() == before
        assert is_ready(edge)


@pytest.mark.skipif(sys.platform != "linux", reason="uses a feature of the Linux kernel")
def test_haproxy_exits_when_the_command_is_killed() -> None:
    with gated_edge(command=True) as (_, edge):
        (proxy,) = edge.haproxy_pids()
        edge.process.kill()
        edge.process.wait(HANG_GUARD_S)
        try:
            wait_until(lambda: not edge.listens(), "HAProxy has exited, too")
        except TimeoutError:
            os.kill(proxy, signal.SIGKILL)
            raise


def test_the_command_fails_when_haproxy_dies() -> None:
    with gated_edge(command=True) as (_, edge):
        os.kill(edge.haproxy_pids()[0], signal.SIGKILL)
        assert edge.process.wait(HANG_GUARD_S) not in (0, None)


def _check(tmp_path: Path, settings: dict[str, Any]) -> tuple[int, str]:
    """Exit status and standard error of ``front --check``."""
    config = tmp_path / "front.yaml"
    config.write_text(yaml.safe_dump(settings))
    with contextlib.redirect_stderr(io.StringIO()) as stderr:
        return main(["front", "--check", "--config", str(config)]), stderr.getvalue()


@pytest.mark.parametrize(
    "settings",
    [
        {"max_conections": 5},
        {"bind": "127.0.0.1"},
        {"bind": "127.0.0.1:0"},
        {"backends": []},
        {"backends": ["a:1\n    server evil b:2"]},
        {"denied_paths": ["/a }\n"]},
        {"header_timeout_s": 0},
        {"header_timeout_s": float("inf")},
        {"check_interval_s": float("nan")},
        {"trusted_proxies": ["everyone"]},
        {"trusted_proxies": ["fe80::1%x\n    maxconn 7\n    #"]},
        {"trusted_proxies": ["10.0.0.0/8 0.0.0.0/0"]},
    ],
)
def test_an_invalid_setting_is_an_error(tmp_path: Path, settings: dict[str, Any]) -> None:
    status, stderr = _check(tmp_path, settings)
    assert status == 1
    assert stderr.startswith("error: the edge settings front.yaml: ")


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"tls": {"certificate": "/no/such/file.pem"}}, "unable to stat SSL certificate"),
        ({"answer_timeout_s": 1e12}, "timer overflow"),
    ],
)
def test_the_reason_why_haproxy_rejects_a_setting_is_reported(
    tmp_path: Path, settings: dict[str, Any], reason: str
) -> None:
    status, stderr = _check(tmp_path, settings)
    assert status == 1
    assert stderr.startswith("error: HAProxy rejects the configuration:\n[ALERT]")
    assert reason in stderr


@pytest.mark.parametrize(("mode", "warned"), [(0o600, False), (0o644, True)])
def test_a_world_readable_private_key_gives_a_warning(
    tmp_path: Path, certificate: Path, mode: int, warned: bool
) -> None:
    copy = tmp_path / "copy.pem"
    copy.write_bytes(certificate.read_bytes())
    copy.chmod(mode)
    status, stderr = _check(tmp_path, {"tls": {"certificate": str(copy)}})
    assert status == 0
    assert ("readable by all users" in stderr) is warned


def test_the_shipped_settings_are_valid() -> None:
    result = subprocess.run(
        [sys.executable, "-m", "serve_app", "front", "--check"],
        capture_output=True,
        timeout=HANG_GUARD_S,
    )
    assert result.returncode == 0, result.stderr


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Self-signed, for 127.0.0.1, with its key in the same file."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "edge")])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), False
        )
        .sign(key, hashes.SHA256())
    )
    path = tmp_path_factory.mktemp("tls") / "edge.pem"
    path.touch(mode=0o600)
    path.write_bytes(
        made.public_bytes(serialization.Encoding.PEM)
        + key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    return path


def test_the_edge_terminates_tls(certificate: Path, backend: Backend) -> None:
    (plain,) = free_ports(1)
    tls = {"certificate": str(certificate), "redirect_from": f"127.0.0.1:{plain}"}
    context = ssl.create_default_context(cafile=str(certificate))
    with (
        RunningEdge([backend.port], LONG_TIMEOUTS | {"tls": tls}) as edge,
        httpx.Client(verify=context, trust_env=False, timeout=HANG_GUARD_S) as client,
    ):
        url = f"{edge.url}/healthz"
        wait_until(lambda: client.get(url).status_code == 200, "the backend is healthy")
        assert backend.headers()["x-forwarded-proto"] == "https"
        assert client.get(url).headers["strict-transport-security"].startswith("max-age=31536000")

        moved = httpx.get(
            f"http://127.0.0.1:{plain}/v1/models?a=b", trust_env=False, timeout=HANG_GUARD_S
        )
        assert moved.status_code == 308
        assert moved.headers["location"] == f"{edge.url}/v1/models?a=b"

        with RawClient(plain) as raw:
            raw.send(b"GET /a HTTP/1.1\r\nHost: a\r\nX-Request-Id: of-plain\r\n\r\n")
            assert raw.response()[1]["x-request-id"] == "of-plain"
        with RawClient(plain) as raw:
            raw.send(b"GET /a HTTP/1.1\r\n\r\n")
            assert raw.response()[0] == 400

        def row() -> dict[str, Any] | None:
            rows = [row for row in edge.request_log() if row["request_id"] == "of-plain"]
            return rows[0] if rows else None

        wait_until(lambda: row() is not None, "the redirect is logged")
        found = row()
        assert found is not None
        assert (found["path"], found["status"]) == ("/a", 308)


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_1, ssl.TLSVersion.TLSv1_2])
def test_tls_before_1_2_is_rejected(
    certificate: Path, backend: Backend, version: ssl.TLSVersion, recwarn: pytest.WarningsRecorder
) -> None:
    """By the edge: the client of this test would accept it."""
    client = ssl.create_default_context(cafile=str(certificate))
    client.set_ciphers("ALL:@SECLEVEL=0")
    client.minimum_version = ssl.TLSVersion.TLSv1
    client.maximum_version = version
    settings = LONG_TIMEOUTS | {"tls": {"certificate": str(certificate)}}
    with RunningEdge([backend.port], settings) as edge, RawClient(edge.port) as raw:
        if version == ssl.TLSVersion.TLSv1_2:
            with client.wrap_socket(raw.socket, server_hostname="127.0.0.1") as made:
                assert made.version() == "TLSv1.2"
        else:
            with pytest.raises(ssl.SSLError, match="ALERT_PROTOCOL_VERSION"):
                client.wrap_socket(raw.socket, server_hostname="127.0.0.1")


def test_the_redirect_port_is_limited_by_address_and_in_all(
    certificate: Path, backend: Backend
) -> None:
    (plain,) = free_ports(1)
    tls = {"certificate": str(certificate), "redirect_from": f"127.0.0.1:{plain}"}
    settings = {"tls": tls, "max_connections": 24, "max_connections_per_source": 2}
    context = ssl.create_default_context(cafile=str(certificate))
    with (
        RunningEdge([backend.port], LONG_TIMEOUTS | settings) as edge,
        ExitStack() as stack,
    ):

        def is_served(number: int) -> bool:
            """Over a new connection, from another address than those before."""
            return get_from(f"127.0.1.{number}", f"{edge.url}/healthz", verify=context) == 200

        wait_until(lambda: is_served(1), "the backend is healthy")
        found = statuses_of(stack, edge, plain, "127.0.0.2", accepted=4, rejected=2)
        assert found == [308] * 4 + [0] * 2
        # Idle connections of 40 addresses, more than this port accepts.
        for number in range(3, 43):
            idle = stack.enter_context(socket.socket())
            idle.setblocking(False)  # those beyond the backlog never connect
            idle.bind((f"127.0.0.{number}", 0))
            idle.connect_ex(("127.0.0.1", plain))
        wait_until(
            lambda: sum(n for key, n in edge.open_connections().items() if "127.0.0." in key) == 6,
            "the redirect port has all the connections that it may have",
        )
        assert [is_served(number) for number in (2, 3, 4)] == [True] * 3
