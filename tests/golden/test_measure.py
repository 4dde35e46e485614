"""MobileSAM's real weights measured by the command, and the ledger read back."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from serve_app.__main__ import main
from serve_app.core.settings import GraphSettings
from serve_app.models.registry import load_registry
from serve_app.profiles.measurements import load_measurements

pytestmark = pytest.mark.weights

SHORT = ("--quick", "--repeats", "1", "--limit-images", "2", "--max-objects", "3")


def test_the_fast_variant_is_measured_and_its_ledger_counts(
    tmp_path: Path,
    weight_paths: Callable[[str], dict[str, Path]],
    capfd: pytest.CaptureFixture[str],
) -> None:
    size = weight_paths("vit_t")["checkpoint"].stat().st_size
    threads = {"compute": {"threads": 2}}
    args = {
        "variants": {"fast": {"model": "vit_t", "encoder": threads, "decoder": threads}},
        "measurements": {"path": str(tmp_path / "ledger.json")},
    }
    config = tmp_path / "graph.yaml"
    config.write_text(yaml.safe_dump({"applications": [{"args": args}]}))
    assert main(["measure", "--config", str(config), *SHORT]) == 0
    out = capfd.readouterr()
    assert "| fast | vit_t | openvino, cpu, float32, 2 threads |" in out.out
    assert "Traceback" not in out.err
    assert "Warning" not in out.err

    found = load_measurements(GraphSettings.model_validate(args), load_registry())
    assert found.warnings == ()
    entry = found.entries["fast"]
    assert entry.agreement is not None
    assert entry.agreement.reference == "segment_anything"
    assert entry.agreement.mask_iou.value >= 0.999
    assert entry.agreement.embedding_cosine is not None
    assert entry.agreement.embedding_cosine.value >= 0.9999
    assert 0.6 < entry.quality["box"].value <= 1
    assert 0.2 < entry.quality["point"].value <= 1
    assert entry.embedding_bytes == 4 * 256 * 64 * 64
    assert size < entry.memory_bytes < 2**32
    assert 0 < entry.load_s.value < entry.cold_start_s.value  # the one is a part of the other
    assert set(entry.encode_ms) == {1, 2}
    assert all(d.value > 0 for d in (*entry.encode_ms.values(), *entry.decode_ms.values()))
