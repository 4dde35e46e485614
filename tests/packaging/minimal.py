"""A minimal installation serves: ``python -m tests.packaging.minimal`` (``make check-minimal``).

Builds the wheel, installs it without extras into a new virtual environment, with the versions of
``requirements.lock``, and there, outside of the repository: imports everything that serves, runs a
tool's command, which must say what to install, and serves ``configs/local.yaml`` with its real
weights to the demonstration.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
from pathlib import Path

from serve_app.deployments.compat.environment import free_ports
from tests.packaging.imports import TOOLS, serving_modules

ROOT = Path(__file__).parents[2]
ABSENT = sorted(TOOLS - {"serve_tools", "sklearn"})
"""scikit-learn comes with sentence-transformers, which needs it itself."""

OF_EXTRAS = {"serve_app.cache.redis"}
"""Modules that are imported only where an extra (here ``redis``) is configured."""

IMPORT_ALL = """
import importlib, sys
from importlib.util import find_spec
absent, names = sys.argv[1].split(","), sys.argv[2].split(",")
assert not [name for name in absent if find_spec(name)], "the tools' packages are installed"
for name in names:
    importlib.import_module(name)
import serve_app
assert "site-packages" in serve_app.__file__
assert "sklearn" not in sys.modules
print(f"{len(names)} modules imported")
"""


def main() -> int:
    """Build, install, import, serve; 0 if all of it works."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("out/minimal"), help="a folder to use")
    out = parser.parse_args().out.resolve()
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    python = install(out)
    print(f"{installed(python)} distributions installed", flush=True)
    names = [name for name in serving_modules() if name not in OF_EXTRAS]
    run(out, python, "-c", IMPORT_ALL, ",".join(ABSENT), ",".join(names))
    command = python.with_name("serve-anything")
    run(out, command, "--help", quiet=True)
    refused = run(out, command, "bench", expect=2)
    assert "pip install 'serve-anything[tools]'" in refused, refused
    (port,) = free_ports(1)
    print(run(out, command, "serve", "--demo", "--once", "--port", str(port)))
    return 0


def install(out: Path) -> Path:
    """A virtual environment with the wheel and its hard dependencies alone; its interpreter."""
    uv = Path(sys.executable).with_name("uv")
    # The wheel is built from the sdist, not from what an earlier build left in the tree.
    run(ROOT, uv, "build", "--quiet", "--out-dir", out / "dist")
    (wheel,) = (out / "dist").glob("*.whl")
    needs = out / "requirements.txt"
    run(
        ROOT, uv, "pip", "compile", "--quiet", "--no-header", "--no-annotate", "--python-version",
        f"{sys.version_info[0]}.{sys.version_info[1]}", "--constraint", "requirements.lock",
        "--output-file", needs, "pyproject.toml",
    )  # fmt: skip
    run(out, uv, "venv", "--quiet", "--python", sys.executable, out / "venv")
    python = out / "venv" / "bin" / "python"
    run(out, uv, "pip", "install", "--quiet", "--python", python, "--requirement", needs)
    run(out, uv, "pip", "install", "--quiet", "--python", python, "--no-deps", wheel)
    return python


def installed(python: Path) -> int:
    """How many distributions an environment has."""
    code = "import importlib.metadata as m; print(len(list(m.distributions())))"
    return int(run(python.parent, python, "-c", code, quiet=True))


def run(folder: Path, *command: str | Path, expect: int = 0, quiet: bool = False) -> str:
    """Run a command; returns what it printed.

    Raises:
        SystemExit: its exit code is not the expected one.
    """
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    done = subprocess.run(
        list(map(str, command)), cwd=folder, capture_output=True, text=True, env=environment,
        check=False,
    )  # fmt: skip
    printed = done.stdout + done.stderr
    if done.returncode != expect:
        raise SystemExit(f"{command[0]}: exit code {done.returncode}\n{printed[-5000:]}")
    if not quiet and len(printed) < 500:
        print(printed, end="", flush=True)
    return printed


if __name__ == "__main__":
    sys.exit(main())
