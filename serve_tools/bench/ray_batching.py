"""The private part of Ray that the benchmark of batchers needs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from ray.serve import batching

from serve_app.deployments.compat.inventory import Attribute

_CHECK = "_warn_if_max_batch_size_exceeds_max_ongoing_requests"

PARTS = (
    Attribute(
        f"ray.serve.batching:_BatchQueue.{_CHECK}",
        "@serve.batch outside of a replica (the benchmark of batchers)",
    ),
)


@contextmanager
def batching_outside_replicas() -> Iterator[None]:
    """Let ``@serve.batch`` run where there is no replica."""
    original = getattr(batching._BatchQueue, _CHECK)
    setattr(batching._BatchQueue, _CHECK, lambda queue: None)
    try:
        yield
    finally:
        setattr(batching._BatchQueue, _CHECK, original)
