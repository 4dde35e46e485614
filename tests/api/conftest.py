"""The HTTP interface in process, over a service that answers by rule and remembers requests."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import httpx
import pytest
from fastapi import FastAPI

from serve_app.connectors.article import article_router
from serve_app.core.limits import Limits
from serve_app.http.app import create_app
from serve_app.telemetry.metrics import set_collector

from ..fakes.service import FakeService
from .asgi import Figures


@pytest.fixture
def service() -> FakeService:
    return FakeService()


@pytest.fixture
def limits() -> Limits:
    return Limits(
        linger_seconds=0,  # these tests look at what the service itself reads
        max_body_seconds=3600,  # on a busy machine
        body_grace_seconds=3600,
        max_body_bytes=4 * 2**20,
        max_prompts=8,
        max_points=4,
        max_texts=3,
        max_batch_images=4,
    )


@pytest.fixture
def figures() -> Iterator[Figures]:
    """What this process counts meanwhile."""
    kept = Figures()
    before = set_collector(kept)
    yield kept
    set_collector(before)


@pytest.fixture
def app(service: FakeService, limits: Limits) -> FastAPI:
    async def metrics() -> bytes:
        return b"# TYPE sam_requests counter\nsam_requests 7\n"

    return create_app(
        service, limits, metrics=metrics, version="9.8.7", connectors=[article_router]
    )


@pytest.fixture
async def client(app: FastAPI) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://sam") as client:
        yield client
