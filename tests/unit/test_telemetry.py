"""Nothing that this project uses reports its use."""

from __future__ import annotations

import subprocess
import sys

import pytest

pytestmark = pytest.mark.slow

SCRIPT = """
import sys
from serve_app.engines.openvino import telemetry_hidden
from openvino.tools.ovc import convert_impl
assert "openvino_telemetry" not in sys.modules
with telemetry_hidden():
    from nncf.telemetry import telemetry, wrapper
print(convert_impl.tm.__name__, isinstance(telemetry, wrapper.NNCFTelemetryStub))
"""


def test_openvino_and_nncf_find_no_telemetry() -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], capture_output=True, text=True, timeout=120, check=True
    )
    assert done.stdout.split() == ["openvino.tools.ovc.telemetry_stub", "True"]


@pytest.mark.parametrize(
    "module",
    [
        "serve_app.engines.sam.encoder_openvino",
        "serve_app.engines.sam.stages_openvino",
        "serve_tools.bench.floor",
        "serve_tools.workshop.quantise",
    ],
)
def test_importing_openvino_imports_no_telemetry(module: str) -> None:
    code = f"import sys, {module}; print('openvino' in sys.modules, *sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded, *modules = done.stdout.split()
    assert loaded == "True"
    assert "openvino_telemetry" not in modules
