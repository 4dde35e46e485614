"""Starting, reloading and stopping lose nothing; TLS ends here; a wrong setting starts nothing."""

from __future__ import annotations

import datetime
import os
import signal
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

from serve_app.commands.environment import free_ports

from .running import Backend, Raw, RunningFront, wait_until
from .test_bounds import ask, gated, ready


def test_sigterm_drains() -> None:
    with gated(command=True) as (gate, front), ExitStack() as stack:
        client = ask(stack, front)
        wait_until(lambda: gate.waiting == 1, "a request is inside")
        front.process.send_signal(signal.SIGTERM)
        wait_until(lambda: not front.listens(), "new connections are refused")
        assert front.process.poll() is None
        gate.opened.set()
        assert client.answer()[0] == 200
        assert front.process.wait(30) == 0


def test_a_second_signal_ends_it_at_once() -> None:
    with gated(command=True) as (gate, front), ExitStack() as stack:
        client = ask(stack, front)
        wait_until(lambda: gate.waiting == 1, "a request is inside")
        front.process.send_signal(signal.SIGTERM)
        wait_until(lambda: not front.listens(), "new connections are refused")
        front.process.send_signal(signal.SIGTERM)
        assert client.answer()[0] == 0
        assert front.process.wait(30) == 0


def test_draining_ends_after_its_time() -> None:
    with gated(command=True, drain_s=0.5) as (gate, front), ExitStack() as stack:
        ask(stack, front)
        wait_until(lambda: gate.waiting == 1, "a request is inside")
        front.process.send_signal(signal.SIGTERM)
        assert front.process.wait(30) == 0


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
            lambda: httpx.get(denied, trust_env=False).status_code == 404, "the new setting holds"
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


def test_an_end_of_haproxy_is_the_end_of_the_command() -> None:
    with gated(command=True) as (_, front):
        os.kill(front.proxies()[0], signal.SIGKILL)
        assert front.process.wait(30) not in (0, None)


def _check(tmp_path: Path, settings: dict[str, Any]) -> subprocess.CompletedProcess[str]:
    config = tmp_path / "front.yaml"
    config.write_text(yaml.safe_dump(settings))
    return subprocess.run(
        [sys.executable, "-m", "serve_app", "front", "--check", "--config", str(config)],
        capture_output=True,
        text=True,
        timeout=60,
    )


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
        {"trusted_proxies": ["everyone"]},
        {"tls": {"certificate": "/no/such/file.pem"}},
    ],
)
def test_a_wrong_setting_starts_nothing(tmp_path: Path, settings: dict[str, Any]) -> None:
    told = _check(tmp_path, settings)
    assert told.returncode == 1
    assert told.stderr.startswith("error: ")
    assert "Traceback" not in told.stderr


def test_the_shipped_settings_are_valid() -> None:
    told = subprocess.run(
        [sys.executable, "-m", "serve_app", "front", "--check"], capture_output=True, timeout=60
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
        httpx.Client(verify=context, trust_env=False) as client,
    ):
        url = f"{front.url}/healthz"
        wait_until(lambda: client.get(url).status_code == 200, "the backend is checked")
        assert backend.headers()["x-forwarded-proto"] == "https"
        assert client.get(url).headers["strict-transport-security"].startswith("max-age=31536000")

        moved = httpx.get(f"http://127.0.0.1:{plain}/v1/models?a=b", trust_env=False)
        assert moved.status_code == 308
        assert moved.headers["location"] == f"{front.url}/v1/models?a=b"

        old = ssl.create_default_context(cafile=str(certificate))
        old.minimum_version = ssl.TLSVersion.TLSv1
        old.maximum_version = ssl.TLSVersion.TLSv1_1
        with Raw(front.port) as raw, pytest.raises((ssl.SSLError, ConnectionResetError)):
            old.wrap_socket(raw.socket, server_hostname="127.0.0.1")
