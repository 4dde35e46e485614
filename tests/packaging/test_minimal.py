"""What serves needs none of the tools: neither `serve_tools` nor the packages of its extra.

`tests.packaging.minimal` proves the same on a real installation (``make check-minimal``).
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

from tests.packaging.imports import TOOLS, serving_modules

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]

# Ray, FastAPI and the model libraries bring these; they are used as part of those.
BROUGHT = {
    "grpcio", "huggingface-hub", "pydantic-core", "starlette", "transformers", "typing-extensions"
}  # fmt: skip
OPTIONAL = {"redis", "opentelemetry-exporter-otlp-proto-http"}


SERVE = """
import asyncio
import numpy as np
from tests.packaging.imports import forbid_tools, import_all
forbid_tools()
print(len(import_all()))
from serve_app.cli.configuration import load_settings
from serve_app.capabilities import Prompts, SegmentRequest
from serve_app.core.types import Prompt
from serve_app.local import build_local_service
settings = load_settings(None)[0].model_copy(update={"text": None})
service = build_local_service(settings, ["fast"])
pixels = np.zeros((48, 64, 3), np.uint8)
click = Prompt(point_coords=np.array([[20, 20]]), point_labels=np.array([1]))
result = asyncio.run(service.segment(SegmentRequest(image=pixels, task=Prompts(prompts=(click,)))))
print(len(result.results[0].masks))
"""


@pytest.mark.weights
def test_all_that_serves_imports_and_segments_without_the_tools() -> None:
    done = subprocess.run(
        [sys.executable, "-c", SERVE], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.splitlines() == [str(len(serving_modules())), "3"]


def test_the_forbidden_packages_are_those_of_the_extra() -> None:
    distributions = packages_distributions()
    named = {_name(d) for package in TOOLS - {"serve_tools"} for d in distributions[package]}
    assert named == {_name(line) for line in PROJECT["optional-dependencies"]["tools"]}


def test_the_hard_dependencies_are_those_that_serving_imports() -> None:
    """Both ways: nothing is imported that is not declared, nothing declared that is not used."""
    distributions = packages_distributions()
    used = {
        _name(distribution)
        for package in _imported()
        for distribution in distributions.get(package, ())
    }
    declared = {_name(line) for line in PROJECT["dependencies"]}
    # Only `pip` is run as a command, only segment-anything imports torchvision.
    assert declared - used == {"pip", "torchvision"}
    undeclared = {name for name in used - declared if not name.startswith("opentelemetry-")}
    assert undeclared - BROUGHT - OPTIONAL == {"serve-anything"} & undeclared


def test_each_hard_dependency_has_its_reason() -> None:
    text = (ROOT / "pyproject.toml").read_text("utf-8")
    block = text.split("\ndependencies = [\n")[1].split("\n]")[0]
    lines = block.splitlines()
    assert len(lines) == len(PROJECT["dependencies"])
    assert [line for line in lines if not re.search(r'",  # \w.{10,}', line)] == []


def _name(requirement: str) -> str:
    found = re.match(r"[\w.-]+", requirement)
    assert found is not None
    return re.sub(r"[-_.]+", "-", found[0]).lower()


def _imported() -> set[str]:
    """Top-level packages that serve_app and graphs import anywhere."""
    found: set[str] = set()
    for folder in ("serve_app", "graphs"):
        for path in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text("utf-8"))):
                if isinstance(node, ast.Import):
                    found |= {alias.name.split(".")[0] for alias in node.names}
                elif isinstance(node, ast.ImportFrom) and node.module:
                    found.add(node.module.split(".")[0])
    return found - set(sys.stdlib_module_names) - {"serve_app", "graphs", "configs"}
