"""A real edge in front of ASGI applications, without Ray; and a client that sends raw bytes."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
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

import httpx
import uvicorn
import yaml

from serve_app.core.limits import Limits
from serve_app.edge.haproxy import EdgeProxy, find_haproxy
from serve_app.edge.settings import EdgeSettings, render

from ..ports import free_ports

HANG_GUARD_S = 120.0
"""Much longer than anything here takes on a slow machine: it only ends tests that hang."""

LONG_TIMEOUTS = dict.fromkeys(
    ("header_timeout_s", "body_timeout_s", "inactivity_timeout_s", "keep_alive_s"), HANG_GUARD_S
)
"""Settings of an edge that does not time out a client which a slow machine delays."""

_PROBE_SOURCE = "127.0.0.9"
"""Probes of a test come from here, so that they do not count as connections of its clients."""


def wait_until(condition: Callable[[], bool], what: str, timeout_s: float = HANG_GUARD_S) -> None:
    """Poll a condition; `what` describes it in the error when it never holds."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"not within {timeout_s:.0f} s: {what}")
        time.sleep(0.02)


def is_ready(edge: RunningEdge) -> bool:
    """Whether /readyz returns 200 through the edge."""
    return get_from(_PROBE_SOURCE, f"{edge.url}/readyz") == 200


def get_from(source: str, url: str, verify: Any = True) -> int:
    """The status of a GET request over a new connection from a source address."""
    transport = httpx.HTTPTransport(local_address=source, verify=verify)
    with httpx.Client(transport=transport, trust_env=False, timeout=HANG_GUARD_S) as client:
        return client.get(url).status_code


class Backend:
    """An ASGI application under uvicorn, in a thread of this process.

    Attributes:
        received: path and headers of the requests that arrived, oldest first, without /readyz.
    """

    def __init__(self, app: Any) -> None:
        self.app = app
        (self.port,) = free_ports(1)
        self.received: list[tuple[str, list[tuple[bytes, bytes]]]] = []
        self.loop: asyncio.AbstractEventLoop | None = None
        config = uvicorn.Config(
            self._record,
            port=self.port,
            log_level="error",
            lifespan="off",
            interface="asgi3",
            timeout_graceful_shutdown=1,  # clients may keep connections open
        )
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()
        wait_until(lambda: self._server.started, "the backend listens")

    def headers(self, number: int = -1) -> dict[str, str]:
        """Headers of a received request; those of the same name are joined with commas."""
        found: dict[str, list[str]] = {}
        for name, value in self.received[number][1]:
            found.setdefault(name.decode(), []).append(value.decode())
        return {name: ",".join(values) for name, values in found.items()}

    def stop(self) -> None:
        self._server.should_exit = True
        self._thread.join(HANG_GUARD_S)

    def _serve(self) -> None:
        self.loop = asyncio.new_event_loop()
        self.loop.run_until_complete(self._server.serve())

    async def _record(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["path"] != "/readyz":
            self.received.append((scope["path"], list(scope["headers"])))
        await self.app(scope, receive, send)


class RunningEdge:
    """HAProxy with the edge's configuration.

    Args:
        backend_ports: ports of the backends on 127.0.0.1.
        settings: of `EdgeSettings`; address and backends are set here.
        limits: of the service, as in its Serve config file.
        host: the address to bind.
        command: start it with ``python -m serve_app front``, which takes longer than starting
            HAProxy directly.
    """

    def __init__(
        self,
        backend_ports: list[int],
        settings: Mapping[str, Any] | None = None,
        limits: Mapping[str, Any] | None = None,
        *,
        host: str = "127.0.0.1",
        command: bool = False,
    ) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="edge-test-")
        folder = Path(self._folder.name)
        (self.port,) = free_ports(1)
        self.settings: dict[str, Any] = {
            "bind": f"{host}:{self.port}",
            "backends": [f"127.0.0.1:{port}" for port in backend_ports],
            **(settings or {}),
        }
        self.config = folder / "front.yaml"
        self.write_settings()
        self._command = command
        self._stats = folder / "stats"
        if command:
            service = folder / "service.yaml"
            application = {"name": "a", "args": {"limits": dict(limits or {})}}
            service.write_text(yaml.safe_dump({"applications": [application]}))
            argv = [sys.executable, "-m", "serve_app", "front"]
            argv += ["--config", str(self.config), "--service", str(service)]
        else:
            max_body_bytes = Limits.model_validate(limits or {}).max_body_bytes
            edge_settings = EdgeSettings.model_validate(
                yaml.safe_load(self.config.read_text()) or {}
            )
            checked = EdgeProxy(lambda: render(edge_settings, max_body_bytes), folder).check()
            stats = folder / "stats.cfg"
            stats.write_text(f"global\n    stats socket {self._stats}\n")
            argv = [find_haproxy(), "-db", "-f", str(checked), "-f", str(stats)]
        self.log = folder / "edge.log"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(argv, stdout=log, stderr=subprocess.STDOUT)

    @property
    def url(self) -> str:
        return f"{'https' if self.settings.get('tls') else 'http'}://127.0.0.1:{self.port}"

    def write_settings(self) -> None:
        self.config.write_text(yaml.safe_dump(self.settings))

    def __enter__(self) -> RunningEdge:
        def listens() -> bool:
            if self.process.poll() is not None:
                raise RuntimeError(f"the edge exited:\n{self.log.read_text()}")
            return self.listens()

        try:
            wait_until(listens, "the edge listens")
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def listens(self) -> bool:
        with socket.socket() as probe:
            probe.bind((_PROBE_SOURCE, 0))
            return probe.connect_ex(("127.0.0.1", self.port)) == 0

    def stop(self) -> None:
        for _ in range(2):  # the second signal ends it at once
            if self.process.poll() is None:
                self.process.send_signal(signal.SIGTERM)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    self.process.wait(2)
        self.process.wait(HANG_GUARD_S)
        self._folder.cleanup()

    def haproxy_pids(self) -> list[int]:
        """Process ids of HAProxy, oldest first."""
        if not self._command:
            return [self.process.pid]
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        return [int(pid) for pid in children.read_text().split()]

    def memory_bytes(self) -> int:
        """Resident memory of HAProxy."""
        pages = Path(f"/proc/{self.haproxy_pids()[-1]}/statm").read_text().split()[1]
        return int(pages) * os.sysconf("SC_PAGE_SIZE")

    def open_connections(self) -> dict[str, int]:
        """Open connections by client address, as HAProxy counts them; not with ``command``."""
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(self._stats))
            client.sendall(b"show table connections\n")
            with client.makefile() as reply:
                rows = re.findall(r"key=(\S+).* conn_cur=(\d+)", reply.read())
        return {key.removeprefix("::ffff:"): int(count) for key, count in rows}

    def request_log(self) -> list[dict[str, Any]]:
        """The logged requests; HAProxy's own notices are plain text."""
        lines = self.log.read_text().splitlines()
        return [json.loads(line) for line in lines if line.startswith("{")]


class RawClient:
    """A connection that sends bytes as they are."""

    def __init__(self, port: int, source: str = "127.0.0.1") -> None:
        self.socket = socket.create_connection(
            ("127.0.0.1", port), HANG_GUARD_S, source_address=(source, 0)
        )

    def __enter__(self) -> RawClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def send(self, data: bytes) -> bool:
        """Send bytes; False if the other side has closed the connection."""
        try:
            self.socket.sendall(data)
        except (BrokenPipeError, ConnectionResetError):
            return False
        return True

    def read_all(self) -> bytes:
        """Receive until the other side closes the connection."""
        received = b""
        while True:
            try:
                chunk = self.socket.recv(65_536)
            except ConnectionResetError:
                return received
            if not chunk:
                return received
            received += chunk

    def response(self) -> tuple[int, dict[str, str], Any]:
        """Status, headers and JSON body of one response; status 0 if the connection closes."""
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
