"""The examples of README.md run as they stand, against the deployed local configuration.

Only the address is replaced, since the tests' cluster has ports of its own.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from ..golden.cases import photo
from .conftest import Served

pytestmark = [pytest.mark.cluster, pytest.mark.weights]

README = (Path(__file__).resolve().parents[2] / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    """Fenced code of one language, in order."""
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.M | re.S)


SHELL = [block for block in blocks("bash") if "curl" in block]
PYTHON = blocks("python")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    Image.fromarray(photo("chelsea")).save(tmp_path / "photo.jpg", quality=92)
    return tmp_path


def test_there_are_examples() -> None:
    assert len(SHELL) >= 4
    assert len(PYTHON) == 1


@pytest.mark.parametrize("block", SHELL, ids=range(len(SHELL)))
def test_curl_examples(served: Served, folder: Path, block: str) -> None:
    script = block.replace("http://127.0.0.1:8000", served.url)
    # Each command of a block must succeed and answer JSON, one value a line.
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script.replace("curl -sf", "curl -sf -w '\\n'")],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    answers = [json.loads(line) for line in done.stdout.splitlines() if line.strip()]
    assert answers
    for answer in answers:
        answer = answer.get("result", answer)
        assert answer["image_id"].startswith("451x300-")
        assert any(one["masks"] for one in answer["results"])


def test_python_example(served: Served, folder: Path) -> None:
    (block,) = PYTHON
    done = subprocess.run(
        [sys.executable, "-c", block],
        cwd=folder,
        env={**served.cluster.environment, "RAY_ADDRESS": served.cluster.address},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    assert re.fullmatch(r"\(300, 451\) bool .*\n", done.stdout), "its own output only"
    assert "INFO" not in done.stderr
