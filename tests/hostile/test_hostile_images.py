"""Hostile image files: pixels or a 4xx of ours, soon, and nothing else happens."""

from __future__ import annotations

import os
import pickle
import statistics
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from serve_app.core.errors import SamServeError
from serve_app.core.limits import Limits
from serve_app.core.types import RgbArray
from serve_app.images.decode import decode_image

from ..clocks import repeat_if_slow
from .images import Canary, hostile_images, saved

CASES = int(os.environ.get("SAM_SERVE_HOSTILE_IMAGES", "132"))
MOST_WORK = 50
"""A case may take so many times the processor's time of a usual photo: a ratio, since processors
differ, and one that others use beside takes longer for the same work."""


@pytest.mark.slow
def test_hostile_images(tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    limits = Limits()
    seen: Counter[str] = Counter()
    noise = np.random.default_rng(1).integers(0, 256, (1024, 1024, 3), np.uint8)
    usual = saved(Image.fromarray(noise), "JPEG")
    usual_s = statistics.median(_decoded(usual, limits)[1] for _ in range(9))
    for index, case in enumerate(hostile_images(CASES, seed=20_260, canary=canary)):
        where = f"case {index}, {case.kind}"
        seen[case.kind] += 1
        limit_s = MOST_WORK * usual_s
        result, seconds = repeat_if_slow(lambda data=case.data: _decoded(data, limits), limit_s)
        assert seconds < limit_s, where
        if isinstance(result, SamServeError):
            assert case.outcome != "decoded", f"{where}: {result.message}"
            assert 400 <= result.status < 500, where
            assert len(result.message) < 300, where
            for trace in ("/", "\\", "0x", "Traceback", "Error", "PIL", "<", "object at"):
                assert trace not in result.message, where
        else:
            assert case.outcome != "refused", where
            assert result.dtype == np.uint8, where
            assert result.ndim == 3, where
            assert result.shape[2] == 3, where
        assert not canary.exists(), where
    assert len(seen) >= 16


def _decoded(data: bytes, limits: Limits) -> tuple[RgbArray | SamServeError, float]:
    """What becomes of a file, and this thread's seconds on the processor."""
    start = time.thread_time()
    try:
        result: RgbArray | SamServeError = decode_image(data, limits)
    except SamServeError as exc:
        result = exc
    return result, time.thread_time() - start


def test_the_canary_would_sing(tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    pickle.loads(pickle.dumps(Canary(canary)))  # noqa: S301 - what must never happen elsewhere
    assert canary.exists()
