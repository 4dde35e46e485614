"""`ray_cluster.yaml` is valid for Ray's cluster launcher."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from ray.autoscaler._private.util import fill_node_type_min_max_workers, validate_config

ROOT = Path(__file__).resolve().parents[3]


def launcher_config() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((ROOT / "ray_cluster.yaml").read_text("utf-8"))
    # `ray up` fills in these before it validates.
    loaded.setdefault("cluster_synced_files", [])
    fill_node_type_min_max_workers(loaded)
    return loaded


def test_the_launcher_config_is_valid() -> None:
    validate_config(launcher_config())
    wrong = launcher_config()
    wrong["available_node_types"]["gpu"]["instance"] = "large"
    with pytest.raises(Exception, match="instance"):
        validate_config(wrong)
