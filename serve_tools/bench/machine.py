"""The machine and the versions of a run."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version

from serve_app.core.host import this_host
from serve_tools.bench.rows import Machine

_PACKAGES = (
    "ray", "torch", "timm", "segment-anything", "onnxruntime", "openvino", "nncf", "numpy",
    "opencv-python-headless", "fastapi", "uvicorn", "serve-anything",
)  # fmt: skip


def this_machine(threads: int) -> Machine:
    """This machine; ``threads`` is the number of threads per model."""
    host = this_host(gpus=True)
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return Machine(
        cpu=host.cpu,
        cores=host.cores,
        threads=threads,
        memory_gib=round(pages / 2**30, 1),
        gpus=host.gpus,
        system=f"{platform.system()} {platform.release()}, Python {platform.python_version()}",
        versions={name: found for name in _PACKAGES if (found := _version(name))},
    )


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
