"""How replica counts are read from what Serve tells."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from ray import serve

from serve_app.deployments.watch import running_replicas


def test_only_running_replicas_count(monkeypatch: pytest.MonkeyPatch) -> None:
    deployments = {
        "fast-encoder": SimpleNamespace(replica_states={"RUNNING": 2, "STARTING": 1}),
        "accurate-encoder": SimpleNamespace(replica_states={}),
    }
    status = SimpleNamespace(applications={"sam": SimpleNamespace(deployments=deployments)})
    monkeypatch.setattr(serve, "status", lambda: status)
    assert running_replicas("sam") == {"fast-encoder": 2, "accurate-encoder": 0}
