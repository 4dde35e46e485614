"""The documents name every error code and every limit, with the values the code has."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from serve_app.__main__ import main
from serve_app.core.errors import SamServeError
from serve_app.core.limits import Limits
from serve_app.core.settings import GraphSettings

ROOT = Path(__file__).resolve().parents[2]
HTTP = (ROOT / "docs" / "http.md").read_text(encoding="utf-8")
ROUTING = (ROOT / "docs" / "routing.md").read_text(encoding="utf-8")


def served_errors(base: type[SamServeError] = SamServeError) -> Iterator[type[SamServeError]]:
    for kind in base.__subclasses__():
        if kind.__module__ == "serve_app.core.errors":
            yield kind
        yield from served_errors(kind)


@pytest.mark.parametrize("error", sorted(set(served_errors()), key=lambda e: e.code))
def test_every_error_code_is_documented_with_its_status(error: type[SamServeError]) -> None:
    assert f"| `{error.code}` | {error.status} |" in HTTP


def test_no_unknown_error_code_is_documented() -> None:
    codes = {error.code for error in served_errors()}
    documented = set(re.findall(r"^\| `([a-z_]+)` \| [45]\d\d \|", HTTP, re.M))
    assert documented == codes


@pytest.mark.parametrize("name", Limits.model_fields)
def test_every_limit_is_documented_with_its_default(name: str) -> None:
    value = getattr(Limits(), name)
    told = f"{value >> 20} MiB" if name.endswith("_bytes") else f"{value:,}"
    assert f"| `{name}` | {told} |" in HTTP


@pytest.mark.parametrize("key", ["measurements", "router", "scaling"])
def test_every_setting_of_routing_and_scaling_is_documented(key: str) -> None:
    _, _, after = ROUTING.partition(f"| setting (`{key}:`) |")
    rows = [row.split("|")[1] for row in after.partition("\n\n")[0].splitlines()[2:]]
    documented = {name for row in rows for name in re.findall(r"`(\w+)`", row)}
    settings = GraphSettings.model_fields[key].annotation
    assert settings is not None
    assert documented == settings.model_fields.keys()


def test_relative_links_of_the_documents_lead_somewhere() -> None:
    for page in [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")]:
        for target in re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_links_to_sections_lead_somewhere_and_nothing_is_left_to_fill_in() -> None:
    for page in [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")]:
        text = page.read_text(encoding="utf-8")
        assert "@@" not in text, page.name
        for target, section in re.findall(r"\]\((?!https?:)([^)#]*)#([^)]+)\)", text):
            there = (page.parent / target if target else page).read_text(encoding="utf-8")
            slugs = {
                re.sub(r"[^a-z0-9 -]", "", line.lstrip("# ").lower()).strip().replace(" ", "-")
                for line in there.splitlines()
                if line.startswith("#")
            }
            assert section in slugs, f"{page.name}: {target}#{section}"


PAGES = [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")]
TEXTS = [*PAGES, ROOT / "Makefile", ROOT / "ray_cluster.yaml",
         *(ROOT / "configs").glob("*.yaml"), *(ROOT / "deploy").rglob("*.yaml")]  # fmt: skip
COMMAND = re.compile(r"(?:serve-anything|python -m serve_app) ([a-z]+)\b")


def test_commands_of_the_documents_exist(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    known = set(re.findall(r"^ +([a-z]+)\b", capsys.readouterr().out, re.M))
    named = {name: text.name for text in TEXTS for name in COMMAND.findall(text.read_text("utf-8"))}
    assert {"serve", "fetch", "measure"} <= named.keys()
    assert {name: page for name, page in named.items() if name not in known} == {}


@pytest.mark.parametrize("page", TEXTS, ids=lambda p: p.name)
def test_no_document_installs_the_foreign_package_of_the_old_name(page: Path) -> None:
    """PyPI has a `sam-serve` that is not this project."""
    text = page.read_text(encoding="utf-8")
    assert not re.search(r"(?:install|add|uvx|pipx run)\b[^\n]*\bsam[-_]serve\b(?!/)", text)
    assert not re.search(r"\bsam-serve\[", text)
