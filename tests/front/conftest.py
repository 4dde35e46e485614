"""The front of each file of this folder, over the real HTTP application and a service by rule."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest

from serve_app.api.app import create_app
from serve_app.domain.limits import Limits

from ..api.conftest import FakeService
from .running import Backend, RunningFront, wait_until

MAX_BODY_BYTES = 2**20
DEADLINE_S = 2.0


@pytest.fixture(scope="module")
def service() -> FakeService:
    return FakeService()


@pytest.fixture(scope="module")
def backend(service: FakeService) -> Iterator[Backend]:
    async def metrics() -> bytes:
        return b"secret 1\n"

    limits = Limits(max_body_bytes=MAX_BODY_BYTES)
    running = Backend(create_app(service, limits, metrics=metrics, version="1"))
    yield running
    running.stop()  # with the tests of one file: others look at this process's log and metrics


@pytest.fixture(scope="module")
def front(backend: Backend) -> Iterator[RunningFront]:
    """Patient: a client that this machine holds up is not refused for it."""
    yield from _running(backend, 120.0)


@pytest.fixture(scope="module")
def hasty_front(backend: Backend) -> Iterator[RunningFront]:
    """With short deadlines."""
    yield from _running(backend, DEADLINE_S)


def _running(backend: Backend, deadline_s: float) -> Iterator[RunningFront]:
    settings = {"header_timeout_s": deadline_s, "body_timeout_s": deadline_s}
    with RunningFront([backend.port], settings, {"max_body_bytes": MAX_BODY_BYTES}) as running:
        wait_until(
            lambda: httpx.get(f"{running.url}/readyz", trust_env=False, timeout=60).is_success,
            "the backend is checked",
        )
        yield running
