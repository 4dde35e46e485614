"""``python -m serve_app simulate``."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from serve_app.__main__ import main
from serve_tools.cli import simulate
from serve_tools.simulation import comparison, scenario, traces

pytestmark = pytest.mark.slow


def test_table_figures_and_plots(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    figures, plots = tmp_path / "figures.json", tmp_path / "plots"
    arguments = ["simulate", "--trace", "step", "--scale", "2-cores", "--minutes", "3"]
    assert main([*arguments, "--json", str(figures), "--out", str(plots)]) == 0
    out = capsys.readouterr().out
    assert out.count("| 2 cores | step |") == 3
    assert "default " in out
    rows = json.loads(figures.read_bytes())
    assert [row["policy"] for row in rows] == ["shared", "default", "tuned"]
    assert all(0 <= row["missed"] <= 1 for row in rows)
    drawn = sorted(plots.iterdir())
    assert [path.name for path in drawn] == ["2-cores-step.png", "summary.png"]
    assert all(1000 < path.stat().st_size < 120_000 for path in drawn)


def test_the_shared_device_predicts_a_median(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    figures = tmp_path / "figures.json"
    arguments = ["simulate", "--shared-device", "--rate", "0.1", "--new", "1"]
    assert main([*arguments, "--json", str(figures)]) == 0
    assert "p50_ms" in capsys.readouterr().out
    profile = scenario.CPU_PROFILES["fast"]
    found = json.loads(figures.read_bytes())["p50_ms"]
    assert found == pytest.approx(profile.encode_ms[1] + profile.decode_ms[1], rel=0.1)


@pytest.mark.parametrize(
    "arguments",
    [
        ["--minutes", "0"],
        ["--shared-device", "--rate", "0"],
        ["--shared-device", "--mix", "2"],
        ["--ledger", "nowhere.json"],
    ],
)
def test_senseless_arguments_are_told(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["simulate", *arguments]) == 1
    assert capsys.readouterr().err.startswith("error: ")


def test_a_file_that_is_no_ledger_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "ledger.json"
    path.write_text("{}", encoding="utf-8")
    assert main(["simulate", "--ledger", str(path)]) == 1
    assert "is no ledger" in capsys.readouterr().err


def test_the_command_knows_all_names_without_loading_the_simulator() -> None:
    assert set(simulate.TRACES) == set(traces.traces())
    assert set(simulate.SCALES) == set(scenario.scales())
    assert set(simulate.POLICY_NAMES) == set(comparison.POLICIES)
