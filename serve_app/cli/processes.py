"""Child processes that serve HTTP: start, wait until ready, stop."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

import httpx

_READY_TIMEOUT_S = 300.0
_STOP_TIMEOUT_S = 60.0
_POLL_S = 0.25
_LOG_TAIL = 25


class NotReady(Exception):
    """The process ended or was not ready in time; the text says which, with the end of its log."""


def start(
    command: Sequence[str], log: IO[bytes], environment: Mapping[str, str] | None = None
) -> subprocess.Popen[bytes]:
    """Start a process that writes stdout and stderr to ``log``.

    It runs in its own session: Ctrl-C at the terminal reaches only this process, which then calls
    `stop`.
    """
    return subprocess.Popen(  # noqa: S603
        command, stdout=log, stderr=subprocess.STDOUT, env=environment, start_new_session=True
    )


def wait_until_ready(child: subprocess.Popen[bytes], url: str, log: Path) -> None:
    """Wait until a GET of ``url`` succeeds.

    Raises:
        NotReady: the process ended, or five minutes have passed.
    """
    deadline = time.monotonic() + _READY_TIMEOUT_S
    while time.monotonic() < deadline:
        if child.poll() is not None:
            raise NotReady(f"did not start:\n{_tail(log)}")
        try:
            if httpx.get(url, timeout=10, trust_env=False).is_success:
                return
        except httpx.HTTPError:
            pass
        time.sleep(_POLL_S)
    raise NotReady(f"was not ready within {_READY_TIMEOUT_S:.0f} s:\n{_tail(log)}")


def _tail(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    return "\n".join(lines[-_LOG_TAIL:])


def stop(child: subprocess.Popen[bytes], timeout_s: float = _STOP_TIMEOUT_S) -> None:
    """End a process as Ctrl-C does; kill its session if it has not ended in time."""
    if child.poll() is not None:
        return
    child.send_signal(signal.SIGINT)
    try:
        child.wait(timeout_s)
    except subprocess.TimeoutExpired:
        os.killpg(child.pid, signal.SIGKILL)
        child.wait()
