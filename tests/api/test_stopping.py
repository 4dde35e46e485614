"""A service that is to stop answers what it has begun, refuses the rest, and says so to probes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from serve_app.core.limits import Limits
from serve_app.http.app import create_app
from serve_app.http.gate import InFlightTracker

from ..fakes.service import FakeService

BODY = {"image_id": "32x24-abc", "box": [1, 1, 9, 9]}


@pytest.fixture
def drain_file(tmp_path: Path) -> Path:
    return tmp_path / "draining"


def stop(drain_file: Path) -> None:
    drain_file.touch()


def go_on_again(drain_file: Path) -> None:
    drain_file.unlink()


@pytest.fixture
async def client(service: FakeService, drain_file: Path) -> AsyncIterator[httpx.AsyncClient]:
    async def metrics() -> bytes:
        return b""

    app = create_app(
        service, Limits(), metrics=metrics, version="1", tracker=InFlightTracker(drain_file)
    )
    async with httpx.AsyncClient(
        transport=httpx.ASGITransport(app), base_url="http://sam"
    ) as client:
        yield client


async def test_what_has_begun_is_answered_and_what_comes_then_is_not_begun(
    client: httpx.AsyncClient, service: FakeService, drain_file: Path
) -> None:
    begun, go_on = asyncio.Event(), asyncio.Event()

    async def wait(_: Any) -> None:
        begun.set()
        await go_on.wait()

    service.hook = wait
    first = asyncio.create_task(client.post("/v1/segment", json=BODY))
    await begun.wait()
    assert (await client.get("/readyz")).json() == {"status": "ready"}
    stop(drain_file)
    probe = await client.get("/readyz")
    assert (probe.status_code, probe.json()) == (503, {"status": "draining", "in_flight": 1})
    refused = await client.post("/v1/segment", json=BODY)
    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "shutting_down")
    assert int(refused.headers["retry-after"]) >= 1
    assert (await client.get("/healthz")).status_code == 200
    go_on.set()
    assert (await first).status_code == 200
    assert (await client.get("/readyz")).json()["in_flight"] == 0
    assert len(service.requests) == 1


async def test_without_the_file_it_takes_requests_again(
    client: httpx.AsyncClient, drain_file: Path
) -> None:
    stop(drain_file)
    assert (await client.post("/v1/segment", json=BODY)).status_code == 503
    go_on_again(drain_file)
    assert (await client.post("/v1/segment", json=BODY)).status_code == 200
