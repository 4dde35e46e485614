"""The offset of masks is found where there is one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from serve_app.core.rle import encode_rle, rle_area
from serve_app.core.types import LOW_RES, PromptResult
from serve_tools.evaluation.annotations import AnnotatedImage, GroundTruth
from serve_tools.workshop import measure_offset

from ..fakes.masks import mask_of
from ..fakes.service import FakeService

SIZE = (1200, 1536)
CELL = max(SIZE) / LOW_RES
DISCS = [(300, 400, 90), (700, 900, 60), (1000, 300, 120)]


def signed_distance(rows: Any, columns: Any, disc: tuple[int, int, int]) -> Any:
    y, x, radius = disc
    return radius - np.hypot(rows - y, columns - x)


class Displaced(FakeService):
    """Its masks lie ``down`` and ``right`` of the discs, in cells."""

    def __init__(self, down: float, right: float) -> None:
        super().__init__()
        self.down, self.right = down, right

    def _results(self, request: Any) -> tuple[PromptResult, ...]:
        at = (np.arange(LOW_RES) + 0.5) * CELL
        rows, columns = at[:, None] - self.down * CELL, at[None] - self.right * CELL
        logits = [
            (signed_distance(rows, columns, disc) / CELL).astype(np.float16) for disc in DISCS
        ]
        return tuple(
            PromptResult(masks=(mask_of(self.array, low_res_logits=one),)) for one in logits
        )


@pytest.mark.parametrize(("down", "right"), [(0, 0), (0.3, 0), (-0.2, 0.1)])
async def test_a_displaced_model_is_best_where_it_is_moved_back(
    tmp_path: Path, down: float, right: float
) -> None:
    file = tmp_path / "x.png"
    file.write_bytes(b"a file")
    rows, columns = np.arange(SIZE[0])[:, None] + 0.5, np.arange(SIZE[1])[None] + 0.5
    objects = []
    for number, disc in enumerate(DISCS):
        rle = encode_rle(signed_distance(rows, columns, disc) > 0)
        objects.append(GroundTruth(number, "disc", rle, rle_area(rle)))
    image = AnnotatedImage(0, file.name, file, SIZE[1], SIZE[0], tuple(objects))
    service = Displaced(down, right)
    found = np.array([row async for row in measure_offset.overlaps(service, "accurate", image)])
    best = [measure_offset.SHIFTS[i] for i in found.mean(axis=0).argmax(axis=1)]
    assert best == [down, right]
    assert "3 objects" in measure_offset.table(found)
