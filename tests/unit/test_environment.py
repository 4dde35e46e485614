"""The switches of a Ray that serves this project on one machine."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from serve_app.commands.environment import ray_environment

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.skipif(sys.platform != "linux", reason="HAProxy comes for Linux alone")
def test_ray_knows_every_switch_and_takes_its_value(tmp_path: Path) -> None:
    """A switch that a new Ray renames would do nothing, silently."""
    switches = ray_environment(tmp_path)
    told = subprocess.run(
        [
            sys.executable, "-c",
            "from ray.serve._private import constants as c; import json; print(json.dumps("
            "{k: getattr(c, k) for k in dir(c) if k.startswith('RAY_SERVE_')}, default=str))",
        ],
        env=switches, check=True, capture_output=True, text=True,
    ).stdout  # fmt: skip
    known = json.loads(told)
    for name, value in switches.items():
        if name.startswith("RAY_SERVE_"):
            taken = int(known[name]) if isinstance(known[name], bool) else known[name]
            assert str(taken) == value, name


def test_two_rays_do_not_share_ports_or_files(tmp_path: Path) -> None:
    one, two = ray_environment(tmp_path / "one"), ray_environment(tmp_path / "two")
    own = {k for k in one if k.endswith(("_PORT", "_LOC", "_PATH", "_BASE", "_FILE"))}
    assert own
    assert all(one[name] != two[name] for name in own)
    assert len({one[name] for name in own if name.endswith("_PORT")}) == 4


def test_the_documents_explain_every_switch(tmp_path: Path) -> None:
    text = (ROOT / "docs" / "deploy.md").read_text("utf-8")
    explained = {name.removeprefix("RAY_SERVE_HAPROXY") for name in ray_environment(tmp_path)}
    unexplained = {name for name in explained if name not in text}
    assert unexplained <= {"RAY_ENABLE_UV_RUN_RUNTIME_ENV"}


def test_each_run_has_a_token_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    one, two = ray_environment(tmp_path), ray_environment(tmp_path)
    assert {one["RAY_AUTH_MODE"], two["RAY_AUTH_MODE"]} == {"token"}
    assert len({one["RAY_AUTH_TOKEN"], two["RAY_AUTH_TOKEN"]}) == 2
    assert len(one["RAY_AUTH_TOKEN"]) >= 32


@pytest.mark.parametrize("name", ["RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"])
def test_a_token_that_is_there_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv(name, "own")
    assert "RAY_AUTH_TOKEN" not in ray_environment(tmp_path)


@pytest.mark.skipif(sys.platform != "linux", reason="HAProxy comes for Linux alone")
def test_haproxy_reads_what_ray_wrote_with_its_pages_on_loopback(tmp_path: Path) -> None:
    config = tmp_path / "haproxy.cfg"
    config.write_text(
        f"global\n    stats socket {tmp_path}/h.sock mode 666 level admin\n"
        "defaults\n    mode http\n    timeout client 1s\n    timeout connect 1s\n"
        "    timeout server 1s\n"
        "frontend prometheus\n    bind :9101\n"
        "frontend http_frontend\n    bind 0.0.0.0:8000\n"
        "listen stats\n  bind *:8404\n  stats enable\n"
    )
    program = ray_environment(tmp_path)["RAY_SERVE_HAPROXY_BINARY_PATH"]
    subprocess.run([program, "-c", "-f", str(config)], check=True, capture_output=True)
    told = config.read_text()
    assert "    bind 127.0.0.1:9101\n" in told
    assert "  bind 127.0.0.1:8404\n" in told
    assert "    bind 0.0.0.0:8000\n" in told, "where the service listens is the operator's choice"
    assert "mode 600 level admin" in told
