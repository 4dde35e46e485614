"""Fixtures that all tests may use."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from serve_app.compute.weights import WeightStore
from serve_app.domain.registry import load_registry

# What was measured on this machine must not decide what tests see; replicas inherit this too.
os.environ["SAM_SERVE_LEDGER"] = str(Path(__file__).with_name("no-ledger.json"))


@pytest.fixture(scope="session")
def weight_paths() -> Callable[[str], dict[str, Path]]:
    """Paths of a model's real weights by file key; fetched where they are missing."""
    registry, store = load_registry(), WeightStore()
    return lambda name: store.ensure(name, registry.get(name))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Quick tests first; the cluster last, since it lives until the session's end."""
    items.sort(key=lambda i: 2 * bool(i.get_closest_marker("cluster")) + _weighs(i))


def _weighs(item: pytest.Item) -> int:
    return int(item.get_closest_marker("weights") is not None)
