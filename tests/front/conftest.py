"""Edges that the tests of a file share, in front of the real HTTP application on a fake service."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from serve_app.connectors.article import article_router
from serve_app.core.limits import Limits
from serve_app.http.app import create_app

from ..fakes.service import FakeService
from .running import LONG_TIMEOUTS, Backend, RunningEdge, is_ready, wait_until

MAX_BODY_BYTES = 2**20
SHORT_TIMEOUT_S = 2.0


@pytest.fixture(scope="module")
def service() -> FakeService:
    return FakeService()


@pytest.fixture(scope="module")
def backend(service: FakeService) -> Iterator[Backend]:
    async def metrics() -> bytes:
        return b"secret 1\n"

    limits = Limits(max_body_bytes=MAX_BODY_BYTES)
    running = Backend(
        create_app(service, limits, metrics=metrics, version="1", connectors=[article_router])
    )
    yield running
    running.stop()  # before the next file, whose tests may look at this process's log and metrics


@pytest.fixture(scope="module")
def edge(backend: Backend) -> Iterator[RunningEdge]:
    yield from _running(backend, LONG_TIMEOUTS)


@pytest.fixture(scope="module")
def impatient_edge(backend: Backend) -> Iterator[RunningEdge]:
    """An edge that times out slow clients after `SHORT_TIMEOUT_S`."""
    short = {"header_timeout_s": SHORT_TIMEOUT_S, "body_timeout_s": SHORT_TIMEOUT_S}
    yield from _running(backend, LONG_TIMEOUTS | short)


def _running(backend: Backend, settings: dict[str, Any]) -> Iterator[RunningEdge]:
    with RunningEdge([backend.port], settings, {"max_body_bytes": MAX_BODY_BYTES}) as running:
        wait_until(lambda: is_ready(running), "the backend is healthy")
        yield running
