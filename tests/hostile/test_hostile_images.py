"""Hostile image files: pixels or a 4xx of ours, soon, and nothing else happens."""

from __future__ import annotations

import os
import pickle
import time
from collections import Counter
from pathlib import Path

import numpy as np

from serve_app.core.errors import SamServeError
from serve_app.core.limits import Limits
from serve_app.images.decode import DecodedImage, decode_image

from .images import Canary, hostile_images

CASES = int(os.environ.get("SAM_SERVE_HOSTILE_IMAGES", "81"))
SECONDS = 1.0


def test_hostile_images(tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    limits = Limits()
    seen: Counter[str] = Counter()
    for index, case in enumerate(hostile_images(CASES, seed=20_260, canary=canary)):
        where = f"case {index}, {case.kind}"
        seen[case.kind] += 1
        # Processor time, so that a busy machine does not fail the test.
        start = time.thread_time()
        try:
            result: DecodedImage | SamServeError = decode_image(case.data, limits)
        except SamServeError as exc:
            result = exc
        assert time.thread_time() - start < SECONDS, where
        if isinstance(result, SamServeError):
            assert case.outcome != "decoded", f"{where}: {result.message}"
            assert 400 <= result.status < 500, where
            assert len(result.message) < 300, where
            for trace in ("/", "\\", "0x", "Traceback", "Error", "PIL", "<", "object at"):
                assert trace not in result.message, where
        else:
            assert case.outcome != "refused", where
            assert result.pixels.dtype == np.uint8, where
            assert result.pixels.ndim == 3, where
            assert result.pixels.shape[2] == 3, where
        assert not canary.exists(), where
    assert len(seen) >= 16


def test_the_canary_would_sing(tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    pickle.loads(pickle.dumps(Canary(canary)))  # noqa: S301 - what must never happen elsewhere
    assert canary.exists()
