"""The HTTP interface with the real flow, and traps that attacks would spring."""

from __future__ import annotations

import json
import pickle
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from tests.hostile.answering import application
from tests.hostile.images import Canary


@pytest.fixture(scope="session")
def app() -> FastAPI:
    return application()


@pytest.fixture
async def client(app: FastAPI) -> AsyncIterator[httpx.AsyncClient]:
    # A fault inside is to be seen as the answer that a client would see.
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://sam") as client:
        yield client


class Trap:
    """A file that exists once somebody has unpickled `payloads`."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.payloads = [pickle.dumps(Canary(path), protocol) for protocol in (0, 2, 5)]

    @property
    def sprung(self) -> bool:
        return self._path.exists()


@pytest.fixture
def trap(tmp_path: Path) -> Trap:
    return Trap(tmp_path / "canary")


class Listener:
    """A port of this machine that nobody should connect to."""

    def __init__(self, listening: socket.socket) -> None:
        self._listening = listening
        listening.setblocking(False)
        self.address = f"127.0.0.1:{listening.getsockname()[1]}"

    @property
    def connected(self) -> bool:
        """Whether somebody has connected since it was last asked."""
        try:
            self._listening.accept()[0].close()
        except BlockingIOError:
            return False
        return True


@pytest.fixture
def listener() -> Iterator[Listener]:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield Listener(listening)


@pytest.fixture
def resolved(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The names that this process has asked a resolver for; none is answered."""
    asked: list[Any] = []

    def getaddrinfo(host: Any, *args: Any, **kwargs: Any) -> Any:
        asked.append(host)
        raise socket.gaierror("no names here")

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    return asked


@pytest.fixture(scope="session")
def posts(app: FastAPI) -> list[str]:
    """The paths that take a body."""
    return [path for path, item in app.openapi()["paths"].items() if "post" in item]


Refusal = Callable[[httpx.Response], None]


@pytest.fixture(scope="session")
def is_refusal() -> Refusal:
    """Checks that an answer, or each line of a batch's, is a 4xx in the service's own words."""

    def check(answer: httpx.Response) -> None:
        batch = answer.headers["content-type"] == "application/x-ndjson"
        if not batch:
            assert 400 <= answer.status_code < 500, (answer.status_code, answer.text[:300])
        for line in answer.text.splitlines() if batch else [answer.text]:
            assert len(line) < 2_048
            error = json.loads(line)["error"]
            assert set(error) <= {"code", "message", "field", "request_id"}
            assert error["code"] != "internal_error"

    return check
