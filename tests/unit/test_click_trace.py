"""A warm click stays short, and ARCHITECTURE.md quotes what was counted."""

from __future__ import annotations

from pathlib import Path

from ..click_trace import changes, trace_click

ARCHITECTURE = Path(__file__).resolve().parents[2] / "ARCHITECTURE.md"


async def test_a_warm_click_passes_few_files() -> None:
    entered = await trace_click()
    files = len(set(entered))
    assert files <= 22
    assert changes(entered) <= 75
    assert f"{files} files and changes file {changes(entered)} times" in ARCHITECTURE.read_text()
