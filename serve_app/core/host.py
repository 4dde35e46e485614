"""The hardware that times depend on, detected without importing a model library."""

from __future__ import annotations

import math
import os
import platform
import subprocess
from pathlib import Path

from serve_app.core.measurements import Host

_CPU_INFO = Path("/proc/cpuinfo")
_CPU_QUOTA = Path("/sys/fs/cgroup/cpu.max")
_GPUS = Path("/proc/driver/nvidia/gpus")


def this_host(gpus: bool) -> Host:
    """The host of this process; GPUs only on request, because the query takes time."""
    return Host(cpu=_cpu(), cores=_cores(), gpus=_gpu_names() if gpus else ())


def _cpu() -> str:
    name = _value(_CPU_INFO, "model name")
    return name or platform.processor() or platform.machine() or "unknown"


def _cores() -> int:
    """Logical cores by affinity, or fewer where a control group (v2) grants less time."""
    if hasattr(os, "sched_getaffinity"):
        cores = len(os.sched_getaffinity(0))
    else:
        cores = os.cpu_count() or 1
    quota, _, period = _read(_CPU_QUOTA).strip().partition(" ")
    if quota.isdigit() and period.isdigit() and int(period) > 0:
        cores = min(cores, math.ceil(int(quota) / int(period)))
    return max(1, cores)


def _gpu_names() -> tuple[str, ...]:
    """Names from the driver: Ray hides GPUs from torch in processes that requested none."""
    names = [_value(path, "Model") for path in sorted(_GPUS.glob("*/information"))]
    return tuple(filter(None, names)) or _queried_gpu_names()


def _queried_gpu_names() -> tuple[str, ...]:
    command = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
    try:
        done = subprocess.run(  # noqa: S603
            command, capture_output=True, text=True, timeout=2, check=True
        )
    except (OSError, subprocess.SubprocessError, UnicodeDecodeError):
        return ()
    return tuple(line.strip() for line in done.stdout.splitlines() if line.strip())


def _value(path: Path, name: str) -> str:
    """The first value of this name among lines ``name: value``; empty: none."""
    for line in _read(path).splitlines():
        key, _, value = line.partition(":")
        if key.strip() == name and value.strip():
            return value.strip()
    return ""


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
