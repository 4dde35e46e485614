"""``python -m serve_app models`` and ``fetch``, on a registry of local files."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from serve_app.__main__ import main
from serve_app.cli.configuration import needed_models, used_models
from serve_app.core.settings import GraphSettings

CONTENT = b"real weights"


def entry(local: Path) -> dict[str, Any]:
    return {
        "family": "sam",
        "architecture": "vit_t",
        "title": "t",
        "license": "MIT",
        "origin": "a test",
        "preprocessing": "p",
        "files": {
            "checkpoint": {
                "name": "a.pt",
                "size": len(CONTENT),
                "sha256": hashlib.sha256(CONTENT).hexdigest(),
                "sources": [{"local": str(local)}],
            }
        },
    }


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("SAM_SERVE_WEIGHTS", raising=False)
    (tmp_path / "here.pt").write_bytes(CONTENT)
    models = {"here": entry(tmp_path / "here.pt"), "gone": entry(tmp_path / "gone.pt")}
    (tmp_path / "models.yaml").write_text(yaml.safe_dump({"models": models}, sort_keys=False))
    args = {
        "registry": str(tmp_path / "models.yaml"),
        "weights_dir": str(tmp_path / "weights"),
        "variants": {"fast": {"model": "here"}},
        "proposals": {"detector": None},
        "text": None,
    }
    path = tmp_path / "graph.yaml"
    path.write_text(yaml.safe_dump({"applications": [{"name": "sam", "args": args}]}))
    return path


def test_models_as_json(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "--json", "--config", str(config)]) == 0
    rows = {row["model"]: row for row in json.loads(capsys.readouterr().out)}
    assert rows["here"]["state"] == "ready"
    assert rows["here"]["used_by"] == ["fast"]
    assert rows["here"]["where"] == str(config.parent / "here.pt")
    assert rows["gone"]["state"] == "missing"
    assert rows["gone"]["used_by"] == []


def test_models_as_table(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "--config", str(config)]) == 0
    header, _, *lines = capsys.readouterr().out.splitlines()
    assert header.split("  ")[0] == "model"
    assert [line.split()[0] for line in lines] == ["here", "gone"]


def test_fetch_takes_the_models_of_the_config(
    config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["fetch", "--config", str(config)]) == 0
    assert capsys.readouterr().out.startswith("here: verified")


@pytest.mark.parametrize("names", [["gone"], ["--all"]])
def test_fetch_fails_with_one_message(
    config: Path, capsys: pytest.CaptureFixture[str], names: list[str]
) -> None:
    assert main(["fetch", *names, "--config", str(config)]) == 1
    errors = capsys.readouterr().err
    assert "unavailable: gone" in errors
    assert "no such file" in errors


def test_fetch_of_an_unknown_model(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fetch", "nope", "--config", str(config)]) == 1
    assert "known: gone, here" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("applications: [", "not YAML"),
        ("[]", "no list of applications"),
        ("applications: []", "no list of applications"),
        ("applications: [1]", "not a mapping"),
        ("applications: [{name: x, args: {nonsense: 1}}]", "nonsense"),
        ("applications: [{args: {registry: /nowhere.yaml}}]", "cannot be read"),
    ],
)
def test_broken_config(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, message: str
) -> None:
    path = tmp_path / "broken.yaml"
    path.write_text(text)
    assert main(["models", "--config", str(path)]) == 1
    assert message in capsys.readouterr().err


def test_missing_config(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fetch", "--config", str(tmp_path / "none.yaml")]) == 1
    assert "cannot be read" in capsys.readouterr().err


def test_used_models_of_a_graph() -> None:
    settings = GraphSettings.model_validate(
        {
            "variants": {
                "fast": {"model": "a"},
                "quantized": {"model": "a"},
                "accurate": {"model": "b"},
            },
            "text": {"engine": "labels"},
        }
    )
    assert used_models(settings) == {
        "a": ["fast", "quantized"],
        "b": ["accurate"],
        "efficientdet_lite2": ["proposals"],
        "minilm_l6_v2": ["text"],
    }
    only_open_clip = GraphSettings.model_validate(
        {"text": {"engine": "open_clip"}, "proposals": {"detector": None}}
    )
    assert used_models(only_open_clip) == {"vit_t": ["fast"], "open_clip_vit_b_32": ["text"]}
    asleep = {"autoscaling_config": {"min_replicas": 0, "max_replicas": 1}}
    sleepy = GraphSettings.model_validate(
        {"variants": {"fast": {"model": "a"}, "accurate": {"model": "b", "decoder": asleep}}}
    )
    assert needed_models(sleepy) == {"a", "efficientdet_lite2", "minilm_l6_v2"}
