"""Unit tests start no cluster: what they test must not need one."""

from __future__ import annotations

import sys
from typing import Any, NoReturn

import pytest


@pytest.fixture(autouse=True)
def _no_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    """`ray.init` and `serve.start` raise; Ray is not imported for that, being slow."""

    def forbidden(*args: Any, **kwargs: Any) -> NoReturn:
        raise AssertionError("a unit test may not start Ray")

    if "ray" in sys.modules:
        monkeypatch.setattr("ray.init", forbidden)
    if "ray.serve" in sys.modules:
        monkeypatch.setattr("ray.serve.start", forbidden)
        monkeypatch.setattr("ray.serve.run", forbidden)
