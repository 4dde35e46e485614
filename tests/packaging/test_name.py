"""The distribution is ``serve-anything``; on PyPI ``sam-serve`` is a project of others."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from serve_app.__main__ import main
from serve_app.cli.commands import COMMANDS, INSTALL_TOOLS
from serve_app.core.version import DISTRIBUTION

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
TEXTS = sorted(
    path
    for pattern in ("*.md", "*.yaml", "Makefile", "docs/**/*", "configs/*", "deploy/**/*",
                    "serve_app/**/*.py", "serve_tools/**/*.py", "graphs/*.py")
    for path in ROOT.glob(pattern)
    if path.is_file() and path.suffix not in {".png", ".jpg", ".pyc"}
)  # fmt: skip

# An installer and the name in one line, the name with an extra, or as a requirement.
FOREIGN = re.compile(
    r"\b(install|add|download|uvx|pipx run|from|index)\b[^\n]*[\s'\"`]sam[-_.]serve(?![\w/.-])"
    r"|\bsam[-_.]serve\[|\bsam[-_.]serve\s*[=~<>!]=|pypi\.org/project/sam[-_.]serve",
    re.IGNORECASE,
)


def test_the_names_agree() -> None:
    assert PROJECT["name"] == DISTRIBUTION == "serve-anything"
    assert PROJECT["scripts"] == {"serve-anything": "serve_app.__main__:main"}


def test_the_extra_that_commands_name_exists() -> None:
    extra = re.fullmatch(rf"pip install '{DISTRIBUTION}\[(\w+)\]'", INSTALL_TOOLS)
    assert extra is not None
    assert extra[1] in PROJECT["optional-dependencies"]


@pytest.mark.parametrize(
    "line",
    [
        "pip install sam-serve",
        "uv add 'sam_serve'",
        "needs the extra sam-serve[tracing]",
        "sam-serve==0.1.0",
        "https://pypi.org/project/sam-serve/",
    ],
)
def test_the_check_sees_the_foreign_name(line: str) -> None:
    assert FOREIGN.search(line)


@pytest.mark.parametrize("line", ["cd sam-serve && pip install .", "install -d /etc/sam-serve"])
def test_the_check_allows_folders_of_that_name(line: str) -> None:
    assert not FOREIGN.search(line)


def test_no_text_says_to_install_the_foreign_project() -> None:
    assert len(TEXTS) > 100
    found = [
        f"{path.relative_to(ROOT)}: {match[0]}"
        for path in TEXTS
        for match in FOREIGN.finditer(path.read_text("utf-8", errors="replace"))
    ]
    assert found == []


@pytest.mark.parametrize("words", [[], *([name] for name in COMMANDS)], ids=lambda w: str(w))
def test_no_help_says_to_install_the_foreign_project(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main([*words, "--help"])
    assert not FOREIGN.search(capsys.readouterr().out)
