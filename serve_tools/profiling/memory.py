"""Memory of this process."""

from __future__ import annotations

import resource
import sys
from pathlib import Path

_PROC = Path("/proc/self")


def held_bytes() -> int:
    """Proportional set size (memory shared with others counts in part), else the resident set."""
    return _kilobytes("smaps_rollup", "Pss") or _kilobytes("status", "VmRSS") or peak_bytes()


def peak_bytes() -> int:
    """The largest resident set this process has had."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return _kilobytes("status", "VmHWM") or (peak if sys.platform == "darwin" else peak * 1024)


def _kilobytes(file: str, key: str) -> int:
    """A line of a file of ``/proc/self`` in bytes; 0 if there is none."""
    try:
        lines = (_PROC / file).read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return 0
    for line in lines:
        name, _, value = line.partition(":")
        if name == key:
            return int(value.split()[0]) * 1024
    return 0
