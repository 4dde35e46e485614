"""A warm click stays short, and ARCHITECTURE.md quotes what was counted."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from ..click_trace import changes

ROOT = Path(__file__).resolve().parents[2]
ARCHITECTURE = ROOT / "ARCHITECTURE.md"


def test_a_warm_click_passes_few_files() -> None:
    # In a process of its own: replicas that other tests made have set up metrics and logs.
    code = "import asyncio, tests.click_trace as t; print(*asyncio.run(t.trace_click()))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True
    )
    entered = done.stdout.split()
    files = len(set(entered))
    assert files <= 22
    assert changes(entered) <= 75
    assert f"{files} files and changes file {changes(entered)} times" in ARCHITECTURE.read_text()
