"""The front of all tests of this folder, over the real HTTP application and a service by rule."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from serve_app.connectors.article import article_router
from serve_app.core.limits import Limits
from serve_app.http.app import create_app

from ..api.conftest import FakeService
from .running import Backend, RunningFront

MAX_BODY_BYTES = 2**20
DEADLINE_S = 2.0


@pytest.fixture(scope="session")
def service() -> FakeService:
    return FakeService()


@pytest.fixture(scope="session")
def backend(service: FakeService) -> Iterator[Backend]:
    async def metrics() -> bytes:
        return b"secret 1\n"

    limits = Limits(max_body_bytes=MAX_BODY_BYTES)
    running = Backend(
        create_app(service, limits, metrics=metrics, version="1", connectors=[article_router])
    )
    yield running
    running.stop()


@pytest.fixture(scope="session")
def front(backend: Backend) -> Iterator[RunningFront]:
    """With short deadlines."""
    settings = {"header_timeout_s": DEADLINE_S, "body_timeout_s": DEADLINE_S}
    with RunningFront([backend.port], settings, {"max_body_bytes": MAX_BODY_BYTES}) as running:
        yield running
