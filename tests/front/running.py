"""The real front over the real HTTP application, without Ray; and a client that misbehaves."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import uvicorn
import yaml

from serve_app.domain.limits import Limits
from serve_app.front.program import Front, find_haproxy
from serve_app.front.render import render
from serve_app.front.settings import load_front_settings

from ..ports import free_ports

START_TIMEOUT_S = 120.0
"""Far more than anything takes here: it ends what hangs."""


def wait_until(met: Callable[[], bool], what: str, timeout_s: float = START_TIMEOUT_S) -> None:
    deadline = time.monotonic() + timeout_s
    while not met():
        if time.monotonic() > deadline:
            raise TimeoutError(f"not within {timeout_s:.0f} s: {what}")
        time.sleep(0.02)


class Backend:
    """An ASGI application under uvicorn, in a thread of this process.

    Attributes:
        seen: headers of the requests that reached it, oldest first; probes are left out.
    """

    def __init__(self, app: Any) -> None:
        self.app = app
        (self.port,) = free_ports(1)
        self.seen: list[tuple[str, list[tuple[bytes, bytes]]]] = []
        self.loop: asyncio.AbstractEventLoop | None = None
        config = uvicorn.Config(
            self._noting,
            port=self.port,
            log_level="error",
            lifespan="off",
            interface="asgi3",
            # At the end nobody waits for connections that clients keep open.
            timeout_graceful_shutdown=1,
        )
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()
        wait_until(lambda: self._server.started, "the backend listens")

    def headers(self, number: int = -1) -> dict[str, str]:
        """Of a request that arrived, by name; a repeated one is joined by commas."""
        found: dict[str, list[str]] = {}
        for name, value in self.seen[number][1]:
            found.setdefault(name.decode(), []).append(value.decode())
        return {name: ",".join(values) for name, values in found.items()}

    def stop(self) -> None:
        self._server.should_exit = True
        self._thread.join(START_TIMEOUT_S)

    def _serve(self) -> None:
        self.loop = asyncio.new_event_loop()
        self.loop.run_until_complete(self._server.serve())

    async def _noting(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["path"] != "/readyz":
            self.seen.append((scope["path"], list(scope["headers"])))
        await self.app(scope, receive, send)


class RunningFront:
    """HAProxy with settings of its own.

    Args:
        settings: of `FrontSettings`, beside where it listens.
        limits: of the service, as in its Serve config file.
        host: where it listens.
        more: lines of HAProxy's own configuration beside.
        command: by ``python -m serve_app front``, which takes a second to start, instead of
            directly.
    """

    def __init__(
        self,
        backend_ports: list[int],
        settings: Mapping[str, Any] | None = None,
        limits: Mapping[str, Any] | None = None,
        *,
        host: str = "127.0.0.1",
        more: str = "",
        command: bool = False,
    ) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="front-test-")
        folder = Path(self._folder.name)
        (self.port,) = free_ports(1)
        self.settings: dict[str, Any] = {
            "bind": f"{host}:{self.port}",
            "backends": [f"127.0.0.1:{port}" for port in backend_ports],
            "check_interval_s": 0.1,
            **(settings or {}),
        }
        self.config = folder / "front.yaml"
        self.write()
        self._command = command
        if command:
            service = folder / "service.yaml"
            application = {"name": "a", "args": {"limits": dict(limits or {})}}
            service.write_text(yaml.safe_dump({"applications": [application]}))
            words = [sys.executable, "-m", "serve_app", "front"]
            words += ["--config", str(self.config), "--service", str(service)]
        else:
            most = Limits.model_validate(limits or {}).max_body_bytes
            checked = Front(lambda: render(load_front_settings(self.config), most), folder).check()
            beside = folder / "more.cfg"
            beside.write_text(more)
            words = [find_haproxy(), "-db", "-f", str(checked), "-f", str(beside)]
        self.log = folder / "front.log"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(words, stdout=log, stderr=subprocess.STDOUT)

    @property
    def url(self) -> str:
        return f"{'https' if self.settings.get('tls') else 'http'}://127.0.0.1:{self.port}"

    def write(self) -> None:
        self.config.write_text(yaml.safe_dump(self.settings))

    def __enter__(self) -> RunningFront:
        def listens() -> bool:
            if self.process.poll() is not None:
                raise RuntimeError(f"the front ended:\n{self.log.read_text()}")
            return self.listens()

        try:
            wait_until(listens, "the front listens")
        except BaseException:
            self.end()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.end()

    def listens(self) -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0

    def end(self) -> None:
        for _ in range(2):  # twice: at once
            if self.process.poll() is None:
                self.process.send_signal(signal.SIGTERM)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    self.process.wait(2)
        self.process.wait(START_TIMEOUT_S)
        self._folder.cleanup()

    def proxies(self) -> list[int]:
        """Process ids of HAProxy, oldest first."""
        if not self._command:
            return [self.process.pid]
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        return [int(pid) for pid in children.read_text().split()]

    def memory_bytes(self) -> int:
        """Resident memory of HAProxy."""
        pages = Path(f"/proc/{self.proxies()[-1]}/statm").read_text().split()[1]
        return int(pages) * os.sysconf("SC_PAGE_SIZE")

    def logged(self) -> list[dict[str, Any]]:
        """Requests of the log; HAProxy's own notices are plain text."""
        lines = self.log.read_text().splitlines()
        return [json.loads(line) for line in lines if line.startswith("{")]


class Raw:
    """A connection that sends what it is told, byte for byte."""

    def __init__(self, port: int, source: str = "127.0.0.1") -> None:
        self.socket = socket.create_connection(
            ("127.0.0.1", port), START_TIMEOUT_S, source_address=(source, 0)
        )

    def __enter__(self) -> Raw:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def send(self, data: bytes) -> bool:
        """Whether the other side still took it."""
        try:
            self.socket.sendall(data)
        except (BrokenPipeError, ConnectionResetError):
            return False
        return True

    def read_all(self) -> bytes:
        """Everything until the other side closes."""
        received = b""
        while True:
            try:
                chunk = self.socket.recv(65_536)
            except ConnectionResetError:
                return received
            if not chunk:
                return received
            received += chunk

    def answer(self) -> tuple[int, dict[str, str], Any]:
        """Status, headers and JSON body of one answer; status 0 where none came."""
        received = b""
        while b"\r\n\r\n" not in received:
            try:
                chunk = self.socket.recv(65_536)
            except ConnectionResetError:
                chunk = b""
            if not chunk:
                return 0, {}, None
            received += chunk
        head, _, body = received.partition(b"\r\n\r\n")
        status, *lines = head.decode().split("\r\n")
        headers = {k.lower(): v.strip() for k, _, v in (line.partition(":") for line in lines)}
        while len(body) < int(headers.get("content-length", "0")):
            body += self.socket.recv(65_536)
        return int(status.split()[1]), headers, json.loads(body) if body else None
