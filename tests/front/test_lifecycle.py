"""Starting, reloading and stopping lose nothing; TLS ends here; a wrong setting starts nothing."""

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
from .running import Backend, Raw, RunningFront, wait_until
from .test_bounds import ask, gated, ready, statuses

pytestmark = pytest.mark.slow


def test_sigterm_drains() -> None:
    with gated(command=True) as (gate, front), ExitStack() as stack:
        client = ask(stack, front)
        wait_until(lambda: gate.waiting == 1, "a request is inside")
        front.process.send_signal(signal.SIGTERM)
        wait_until(lambda: not front.listens(), "new connections are refused")
        assert front.process.poll() is None
        gate.opened.set()
        assert client.answer()[0] == 200
        assert front.process.wait(120) == 0


def test_a_second_signal_ends_it_at_once() -> None:
    with gated(command=True) as (gate, front), ExitStack() as stack:
        client = ask(stack, front)
        wait_until(lambda: gate.waiting == 1, "a request is inside")
        front.process.send_signal(signal.SIGTERM)
        wait_until(lambda: not front.listens(), "new connections are refused")
        front.process.send_signal(signal.SIGTERM)
        assert client.answer()[0] == 0
        assert front.process.wait(120) == 0


def test_draining_ends_after_its_time() -> None:
    with gated(command=True, drain_s=0.5) as (gate, front), ExitStack() as stack:
        ask(stack, front)
        wait_until(lambda: gate.waiting == 1, "a request is inside")
        front.process.send_signal(signal.SIGTERM)
        assert front.process.wait(120) == 0


def test_reloading_takes_new_settings_and_loses_no_request() -> None:
    with gated(command=True) as (gate, front), ExitStack() as stack:
        client = ask(stack, front)
        wait_until(lambda: gate.waiting == 1, "a request is inside")
        (old,) = front.proxies()
        front.settings["denied_paths"] = ["/healthz"]
        front.write()
        front.process.send_signal(signal.SIGHUP)
        denied = f"{front.url}/healthz"
        wait_until(lambda: len(front.proxies()) == 2, "the new one runs beside the old")
        gate.opened.set()
        assert client.answer()[0] == 200
        wait_until(lambda: old not in front.proxies(), "the old one has ended")
        wait_until(
            lambda: httpx.get(denied, trust_env=False, timeout=120).status_code == 404,
            "the new setting holds",
        )


def test_a_wrong_setting_at_a_reload_changes_nothing() -> None:
    with gated(command=True) as (_, front):
        before = front.proxies()
        front.settings["bind"] = "not an address"
        front.write()
        front.process.send_signal(signal.SIGHUP)
        wait_until(lambda: "not reloaded" in front.log.read_text(), "it is told")
        assert front.proxies() == before
        assert ready(front)


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel of Linux tells the child")
def test_a_front_that_is_killed_leaves_no_haproxy() -> None:
    with gated(command=True) as (_, front):
        (proxy,) = front.proxies()
        front.process.kill()
        front.process.wait(120)
        try:
            wait_until(lambda: not front.listens(), "HAProxy has ended, too")
        except TimeoutError:
            os.kill(proxy, signal.SIGKILL)
            raise


def test_an_end_of_haproxy_is_the_end_of_the_command() -> None:
    with gated(command=True) as (_, front):
        os.kill(front.proxies()[0], signal.SIGKILL)
        assert front.process.wait(120) not in (0, None)


def _check(tmp_path: Path, settings: dict[str, Any]) -> tuple[int, str]:
    """Exit status of ``front --check`` and what it says on standard error."""
    config = tmp_path / "front.yaml"
    config.write_text(yaml.safe_dump(settings))
    with contextlib.redirect_stderr(io.StringIO()) as told:
        return main(["front", "--check", "--config", str(config)]), told.getvalue()


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
def test_a_wrong_setting_starts_nothing(tmp_path: Path, settings: dict[str, Any]) -> None:
    status, told = _check(tmp_path, settings)
    assert status == 1
    assert told.startswith("error: the front's settings front.yaml: ")


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"tls": {"certificate": "/no/such/file.pem"}}, "unable to stat SSL certificate"),
        ({"answer_timeout_s": 1e12}, "timer overflow"),
    ],
)
def test_what_haproxy_refuses_is_told_with_its_reason(
    tmp_path: Path, settings: dict[str, Any], reason: str
) -> None:
    status, told = _check(tmp_path, settings)
    assert status == 1
    assert told.startswith("error: HAProxy refuses the configuration:\n[ALERT]")
    assert reason in told


@pytest.mark.parametrize(("mode", "warned"), [(0o600, False), (0o644, True)])
def test_a_key_that_others_can_read_is_warned_of(
    tmp_path: Path, certificate: Path, mode: int, warned: bool
) -> None:
    mine = tmp_path / "own.pem"
    mine.write_bytes(certificate.read_bytes())
    mine.chmod(mode)
    status, told = _check(tmp_path, {"tls": {"certificate": str(mine)}})
    assert status == 0
    assert ("warning: other users" in told) is warned


def test_the_shipped_settings_are_valid() -> None:
    told = subprocess.run(
        [sys.executable, "-m", "serve_app", "front", "--check"], capture_output=True, timeout=300
    )
    assert told.returncode == 0, told.stderr


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Self-signed, for 127.0.0.1, with its key in the same file."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "front")])
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
    path = tmp_path_factory.mktemp("tls") / "front.pem"
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


def test_tls_ends_at_the_front(certificate: Path, backend: Backend) -> None:
    (plain,) = free_ports(1)
    tls = {"certificate": str(certificate), "redirect_from": f"127.0.0.1:{plain}"}
    context = ssl.create_default_context(cafile=str(certificate))
    with (
        RunningFront([backend.port], {"tls": tls}) as front,
        httpx.Client(verify=context, trust_env=False, timeout=120) as client,
    ):
        url = f"{front.url}/healthz"
        wait_until(lambda: client.get(url).status_code == 200, "the backend is checked")
        assert backend.headers()["x-forwarded-proto"] == "https"
        assert client.get(url).headers["strict-transport-security"].startswith("max-age=31536000")

        moved = httpx.get(f"http://127.0.0.1:{plain}/v1/models?a=b", trust_env=False, timeout=120)
        assert moved.status_code == 308
        assert moved.headers["location"] == f"{front.url}/v1/models?a=b"

        with Raw(plain) as raw:
            raw.send(b"GET /a HTTP/1.1\r\nHost: a\r\nX-Request-Id: of-plain\r\n\r\n")
            assert raw.answer()[1]["x-request-id"] == "of-plain"
        with Raw(plain) as raw:
            raw.send(b"GET /a HTTP/1.1\r\n\r\n")
            assert raw.answer()[0] == 400

        def row() -> dict[str, Any] | None:
            rows = [row for row in front.logged() if row["request_id"] == "of-plain"]
            return rows[0] if rows else None

        wait_until(lambda: row() is not None, "the redirect is logged")
        found = row()
        assert found is not None
        assert (found["path"], found["status"]) == ("/a", 308)


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_1, ssl.TLSVersion.TLSv1_2])
def test_old_tls_is_refused(
    certificate: Path, backend: Backend, version: ssl.TLSVersion, recwarn: pytest.WarningsRecorder
) -> None:
    """Up to 1.1 by the front; the client of this test would take it."""
    client = ssl.create_default_context(cafile=str(certificate))
    client.set_ciphers("ALL:@SECLEVEL=0")
    client.minimum_version = ssl.TLSVersion.TLSv1
    client.maximum_version = version
    settings = {"tls": {"certificate": str(certificate)}}
    with RunningFront([backend.port], settings) as front, Raw(front.port) as raw:
        if version == ssl.TLSVersion.TLSv1_2:
            with client.wrap_socket(raw.socket, server_hostname="127.0.0.1") as made:
                assert made.version() == "TLSv1.2"
        else:
            with pytest.raises(ssl.SSLError, match="ALERT_PROTOCOL_VERSION"):
                client.wrap_socket(raw.socket, server_hostname="127.0.0.1")


def test_the_redirect_takes_neither_more_of_one_address_nor_all_there_is(
    certificate: Path, backend: Backend
) -> None:
    (plain,) = free_ports(1)
    tls = {"certificate": str(certificate), "redirect_from": f"127.0.0.1:{plain}"}
    settings = {"tls": tls, "max_connections": 24, "max_connections_per_source": 2}
    patient = dict.fromkeys(("header_timeout_s", "silence_timeout_s", "keep_alive_s"), 120)
    context = ssl.create_default_context(cafile=str(certificate))
    with (
        RunningFront([backend.port], {**settings, **patient}) as front,
        ExitStack() as stack,
    ):

        def served() -> bool:
            url = f"{front.url}/healthz"
            return httpx.get(url, verify=context, trust_env=False, timeout=120).status_code == 200

        wait_until(served, "the backend is checked")
        assert statuses(stack, plain, "127.0.0.2", 6) == [308] * 4 + [0] * 2
        # Idle ones of many addresses, and not all of them are taken.
        for number in range(3, 43):
            idle = stack.enter_context(socket.socket())
            idle.setblocking(False)  # beyond those that wait for their turn nothing is answered
            idle.bind((f"127.0.0.{number}", 0))
            idle.connect_ex(("127.0.0.1", plain))
        # The first may have come before those were taken, the next ones not.
        assert [served() for _ in range(3)] == [True] * 3
