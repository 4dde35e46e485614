"""Memory and descriptors of processes, as the kernel counts them."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

import numpy as np

MIB = 2**20


def pss_bytes(pid: int, part: str = "Pss") -> int:
    """Proportional set size: shared pages count in parts; 0 of a process that is gone.

    Args:
        part: ``Pss_Anon`` counts what the process has taken itself, and no files: of those its part
            grows when others end that map the same libraries.
    """
    try:
        text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    except OSError:
        return 0
    return next(
        (int(line.split()[1]) * 1024 for line in text.splitlines() if line.startswith(f"{part}:")),
        0,
    )


def open_files(pid: int) -> int:
    """Descriptors; 0 of a process that is gone."""
    try:
        return len(os.listdir(f"/proc/{pid}/fd"))
    except OSError:
        return 0


def processes_named(session: Iterable[int], word: str) -> list[int]:
    """Those of the given processes whose command line holds a word."""
    found = []
    for pid in session:
        try:
            command = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ")
        except OSError:
            continue
        if word.encode() in command:
            found.append(pid)
    return found


def slope_per_min(seconds: list[float], values: list[float]) -> float:
    """Least squares, in units of the values a minute."""
    if len(seconds) < 3:
        return float("nan")
    return float(np.polyfit(np.array(seconds) / 60, np.array(values), 1)[0])
