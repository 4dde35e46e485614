"""A configuration is resolved once, and all parts of the graph work with the result."""

from __future__ import annotations

import pickle
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ray.serve.deployment import Application

import graphs.full
import serve_app.profiles.plan as module
from serve_app.core.settings import GraphSettings
from serve_app.deployments import ingress
from serve_app.profiles.plan import Plan, resolve
from serve_app.scaling.reports import read_profiles

from .ledger_entries import REGISTRY, entry, ledger


@pytest.fixture
def settings(tmp_path: Path) -> GraphSettings:
    registry, measured = tmp_path / "models.yaml", tmp_path / "ledger.json"
    registry.write_text(REGISTRY.model_dump_json(exclude_none=True), encoding="utf-8")
    content = ledger({"fast": entry(), "accurate": entry("large")})
    measured.write_text(content.model_dump_json(), encoding="utf-8")
    return GraphSettings.model_validate(
        {
            "registry": str(registry),
            "weights_dir": str(tmp_path),
            "measurements": {"path": str(measured)},
            "variants": {
                "fast": {"model": "small"},
                "accurate": {"model": "large", "layout": "fused"},
                "quantized": {"model": "small_int8", "reference": "fast"},
            },
            "proposals": {"detector": None},
            "text": None,
        }
    )


def test_a_plan_holds_what_is_deployed_and_says_what_is_not(settings: GraphSettings) -> None:
    plan = resolve(settings)
    assert plan.variants.keys() == plan.settings.variants.keys() == {"fast", "accurate"}
    assert plan.unavailable.keys() == {"quantized"}
    assert plan.settings.router.aliases == {"quantized": "fast"}
    assert plan.warnings[0].startswith("quantized is served by its reference: ")
    profile = plan.measurements.profiles["fast"]
    measured = plan.variants["fast"]["measured"]["encode_ms"]
    assert {int(n): d["value"] for n, d in measured.items()} == profile.encode_ms


def test_a_plan_is_a_value(settings: GraphSettings) -> None:
    plan = resolve(settings)
    assert pickle.loads(pickle.dumps(plan)) == plan  # noqa: S301 - our own bytes


def test_a_graph_resolves_its_configuration_once_and_shares_it(
    settings: GraphSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[Any] = []
    load = module.load_measurements
    monkeypatch.setattr(module, "load_measurements", lambda *a: (read.append(a), load(*a))[1])
    application = graphs.full.build(settings)
    assert len(read) == 1
    bound = {node._bound_deployment.name: node._bound_deployment for node in _nodes(application)}
    (plan, *_) = bound["ingress"].init_args
    assert isinstance(plan, Plan)
    assert plan.measurements.profiles.keys() == {"fast", "accurate"}


def test_the_ingress_reports_the_measured_profiles(
    settings: GraphSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ingress, "watch_replica_counts", lambda *_: None)
    monkeypatch.setattr(ingress, "join_serve_log", lambda: None)
    monkeypatch.setattr(ingress, "silence_decoders", lambda: None)
    port = SimpleNamespace(scale_from_zero=None)
    monkeypatch.setattr(ingress, "RemotePredictor", lambda handle: port)
    monkeypatch.setattr(ingress, "RemoteProposer", lambda handle: port)
    plan = resolve(settings)
    decoders = dict.fromkeys(plan.variants)
    # Below what `serve.ingress` adds.
    replica: Any = ingress.IngressReplica.__bases__[0](plan, decoders, None, None)
    found = read_profiles(replica.record_autoscaling_stats())
    profiles = plan.measurements.profiles
    assert found.keys() == profiles.keys() == {"fast", "accurate"}
    assert all(found[name].encode_ms == profiles[name].encode_ms for name in found)


def _nodes(value: Any) -> list[Application]:
    if isinstance(value, Application):
        inner = [node for part in value._bound_deployment.init_args for node in _nodes(part)]
        return [value, *inner]
    if isinstance(value, dict):
        return [node for part in value.values() for node in _nodes(part)]
    return []
