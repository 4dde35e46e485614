"""OpenVINO for engines on CPUs.  This package imports `openvino`, without its usage reports."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast


@contextmanager
def telemetry_hidden() -> Iterator[None]:
    """Hide the package ``openvino_telemetry`` from what is imported inside.

    OpenVINO and NNCF report their use to their makers when they find that package, which is
    installed with OpenVINO; when they do not, they use a stub.  They decide at import.  A process
    that has already imported the package keeps it.
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
    import openvino as openvino
