"""Unit tests start no cluster: what they test must not need one."""

from __future__ import annotations

from typing import Any, NoReturn

import pytest
import ray


@pytest.fixture(autouse=True)
def _no_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    """`ray.init` raises, also where another of Ray's functions calls it unasked."""

    def forbidden(*args: Any, **kwargs: Any) -> NoReturn:
        raise AssertionError("a unit test may not start Ray")

    monkeypatch.setattr(ray, "init", forbidden)
