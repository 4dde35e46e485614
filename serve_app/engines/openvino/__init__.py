"""OpenVINO without its usage reports: other modules import `openvino` from here."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast


@contextmanager
def telemetry_hidden() -> Iterator[None]:
    """Hide the package ``openvino_telemetry`` from imports inside the block.

    OpenVINO and NNCF send usage reports if they can import that package, which is installed with
    OpenVINO; otherwise they use a stub.  They decide at import.  Has no effect in a process that
    has already imported the package.
    """
    name = "openvino_telemetry"
    modules = cast(dict[str, Any], sys.modules)
    if name in modules:
        yield
        return
    modules[name] = None
    try:
        yield
    finally:
        del modules[name]


with telemetry_hidden():
    import openvino as ov
    from openvino import opset13 as op

__all__ = ["op", "ov", "telemetry_hidden"]
