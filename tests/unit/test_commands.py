"""The table of commands: help, examples, and what happens without the tools' packages."""

from __future__ import annotations

import argparse
import shlex
import subprocess
import sys
from importlib.util import find_spec
from types import SimpleNamespace
from typing import Any

import pytest

from serve_app.__main__ import main
from serve_app.cli import commands, text_table
from serve_app.cli.commands import COMMANDS, GROUPS, Command
from serve_tools.markdown import markdown_table

SLOW = {"torch", "ray", "numpy", "pydantic", "fastapi", "serve_tools"}


def test_every_group_has_a_command_and_every_command_a_group() -> None:
    assert {command.group for command in COMMANDS.values()} == set(GROUPS)


@pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS)
def test_an_example_is_accepted_by_its_command(command: Command) -> None:
    name, *words = shlex.split(command.example)
    assert name == command.name
    parser = argparse.ArgumentParser()
    module = command.load()
    module.add_arguments(parser)
    parser.parse_args(words)
    assert callable(module.run)


@pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS)
def test_a_commands_help_shows_its_example(
    command: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main([command.name, "--help"])
    assert ended.value.code == 0
    assert f"example:\n  python -m serve_app {command.example}" in capsys.readouterr().out


def test_the_help_lists_all_commands_by_group_with_examples(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    listing = capsys.readouterr().out
    places = [listing.index(f"\n{group}:\n") for group in GROUPS]
    assert places == sorted(places)
    for command in COMMANDS.values():
        assert f"  {command.name} " in listing
        assert f"$ python -m serve_app {command.example}\n" in listing


def test_the_help_imports_nothing_slow() -> None:
    """In a process of its own: another test may have imported it here."""
    code = (
        "import sys\nfrom serve_app.__main__ import main\n"
        "try: main(['--help'])\nexcept SystemExit: pass\n"
        f"print(sorted({SLOW!r} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_an_unknown_command_is_a_usage_error(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["segmentt"])
    assert ended.value.code == 2
    assert "invalid choice" in capsys.readouterr().err


@pytest.fixture
def without_tools(monkeypatch: pytest.MonkeyPatch) -> None:
    def find(name: str) -> object:
        return None if name == "sklearn" else find_spec(name)

    monkeypatch.setattr(commands, "find_spec", find)


@pytest.mark.usefixtures("without_tools")
@pytest.mark.parametrize("name", [c.name for c in COMMANDS.values() if c.is_tool])
def test_a_tool_without_its_packages_says_what_to_install(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([name, "--help"]) == 2
    printed = capsys.readouterr()
    assert printed.err == f"error: {name} needs: pip install 'serve-anything[tools]'\n"
    assert printed.out == ""


@pytest.mark.usefixtures("without_tools")
def test_serving_starts_unmeasured_without_the_tools(
    capsys: pytest.CaptureFixture[str],
) -> None:
    from serve_app.cli import serve

    plan: Any = SimpleNamespace(measurements=SimpleNamespace(entries={}, warnings=()))
    serve._measure_once(plan)
    (line,) = capsys.readouterr().err.splitlines()
    assert "not measured on this host" in line
    assert "pip install 'serve-anything[tools]'" in line


@pytest.mark.parametrize(
    ("cascade_to", "rules", "told"),
    [
        ("accurate", {}, "`make measure`"),
        ("accurate", {"accurate>fast": {"box": 1}}, "`make measure`"),
        (None, {}, "router.cascade_to"),
        ("accurate", {"fast>accurate": {"box": 1}}, None),
    ],
)
def test_serving_says_that_the_cascade_is_off_and_how_to_switch_it_on(
    cascade_to: str | None, rules: Any, told: str | None, capsys: pytest.CaptureFixture[str]
) -> None:
    from serve_app.cli import serve

    router = SimpleNamespace(default="fast", cascade_to=cascade_to)
    plan: Any = SimpleNamespace(
        settings=SimpleNamespace(router=router), measurements=SimpleNamespace(escalation=rules)
    )
    serve._tell_cascade(plan)
    printed = capsys.readouterr().err
    assert (told in printed and "is off" in printed) if told else not printed


def test_a_markdown_table_escapes_its_cells() -> None:
    table = markdown_table(["a", "n", "note"], [["x|y", "1", "z"]], right=1)
    assert table == "| a | n | note |\n| --- | ---: | --- |\n| x\\|y | 1 | z |"


def test_a_text_table_aligns_its_columns() -> None:
    assert text_table(["name", "n"], [["a", "100"]]) == "name  n\n----  ---\na     100"
