"""Nothing that this project uses reports its use."""

from __future__ import annotations

import subprocess
import sys

import pytest

pytestmark = pytest.mark.slow

SCRIPT = """
import serve_app.engines.openvino.runtime
from openvino.tools.ovc import convert_impl
from nncf.telemetry import telemetry, wrapper
print(convert_impl.tm.__name__, isinstance(telemetry, wrapper.NNCFTelemetryStub))
"""


def test_openvino_and_nncf_find_no_telemetry() -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], capture_output=True, text=True, timeout=120, check=True
    )
    assert done.stdout.split() == ["openvino.tools.ovc.telemetry_stub", "True"]
