"""Int8 models made on this machine: found, deployed, and refused where they are not worth it."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from serve_app.core.host import this_host
from serve_app.core.settings import Compute, GraphSettings
from serve_app.models.factory import ModelSource
from serve_app.models.quantized import MANIFEST, Manifest, drop_unavailable_variants, open_registry
from serve_app.models.registry import ModelSpec, RegistryError, load_registry
from serve_app.profiles.plan import variant_info
from serve_tools.profiling.protocol import Effort
from serve_tools.workshop.quantise import Calibration, QuantiseError, quantise

FIGURES = {
    "embedding_cosine": 0.995,
    "mask_iou": 0.97,
    "mean_iou": 0.80,
    "original_mean_iou": 0.803,
    "encode_ms": 150.0,
    "original_encode_ms": 300.0,
    "speedup": 2.0,
    "images": 4,
    "objects": 20,
    "data": "drawn",
}


def make(root: Path, changes: dict[str, Any] | None = None, weights: str | None = None) -> Manifest:
    """Write a manifest as the command does; no graph is needed to decide on it."""
    original = load_registry().get("vit_t")
    checkpoint = original.files["checkpoint"].model_dump() | {"sources": ()}
    graph = {"name": "encoder.xml", "size": 10, "sha256": "a" * 64}
    bytes_ = {"name": "encoder.bin", "size": 20, "sha256": "b" * 64}
    spec = original.model_dump() | {
        "engines": ("openvino",),
        "files": {"checkpoint": checkpoint, "encoder": graph, "encoder_weights": bytes_},
    }
    manifest = Manifest.model_validate(
        {
            "spec": spec,
            "original": "vit_t",
            "original_weights": weights or original.weights_hash,
            "calibration": "photos",
            "calibration_images": 3,
            "figures": FIGURES | (changes or {}),
            "created": "2026-01-02T03:04:05+00:00",
            "cpu": this_host(gpus=False).cpu,
            "versions": {"openvino": "1"},
        }
    )
    folder = root / "vit_t_int8"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / MANIFEST).write_text(manifest.model_dump_json(), encoding="utf-8")
    return manifest


def settings(root: Path, **changes: Any) -> GraphSettings:
    content: dict[str, Any] = {
        "weights_dir": str(root),
        "variants": {
            "fast": {"model": "vit_t"},
            "quantized": {"model": "vit_t_int8", "reference": "fast"},
        },
    }
    return GraphSettings.model_validate(content | changes)


def test_without_an_int8_model_the_reference_answers_under_its_name(tmp_path: Path) -> None:
    found, left_out = drop_unavailable_variants(settings(tmp_path))
    assert list(found.variants) == ["fast"]
    assert found.router.aliases == {"quantized": "fast"}
    assert "python -m serve_app quantise" in left_out["quantized"]


def test_a_good_int8_model_is_deployed_with_weights_of_its_own(tmp_path: Path) -> None:
    manifest = make(tmp_path)
    found, left_out = drop_unavailable_variants(settings(tmp_path))
    assert list(found.variants) == ["fast", "quantized"]
    assert (found.router.aliases, left_out) == ({}, {})
    registry = ModelSource.of(found).registry
    assert registry.get("vit_t_int8") == manifest.spec
    # Other weights, so that no cache takes one's embeddings for the other's.
    assert registry.get("vit_t_int8").weights_hash != registry.get("vit_t").weights_hash
    info = variant_info("quantized", found.variants["quantized"], registry)
    assert info["engine"] == "openvino"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"speedup": 1.05}, "1.05 times as fast"),
        ({"mean_iou": 0.797}, "loses 0.0060 of mean IoU"),
    ],
)
def test_slower_or_worse_than_the_tolerance_is_refused(
    tmp_path: Path, changes: dict[str, Any], said: str
) -> None:
    make(tmp_path, changes)
    found, left_out = drop_unavailable_variants(settings(tmp_path))
    assert found.router.aliases == {"quantized": "fast"}
    assert said in left_out["quantized"]
    tolerant = {"least_speedup": 1.0, "most_iou_loss": 0.01}
    found, left_out = drop_unavailable_variants(settings(tmp_path, quantized=tolerant))
    assert ("quantized" in found.variants, left_out) == (True, {})


def test_an_int8_model_of_other_weights_is_refused(tmp_path: Path) -> None:
    make(tmp_path, weights="c" * 64)
    assert "other weights" in drop_unavailable_variants(settings(tmp_path))[1]["quantized"]


def test_figures_of_another_processor_count_where_the_ledgers_do(tmp_path: Path) -> None:
    manifest = make(tmp_path)
    path = tmp_path / "vit_t_int8" / MANIFEST
    path.write_text(manifest.model_copy(update={"cpu": "another"}).model_dump_json(), "utf-8")
    assert "another processor" in drop_unavailable_variants(settings(tmp_path))[1]["quantized"]
    assert not drop_unavailable_variants(settings(tmp_path, measurements={"trust_host": True}))[1]


def test_a_copied_folder_hides_no_model(tmp_path: Path) -> None:
    make(tmp_path)
    shutil.copytree(tmp_path / "vit_t_int8", tmp_path / "vit_t_int8 (copy)")
    assert "vit_t_int8" in open_registry(None, tmp_path).models
    assert "vit_t_int8 (copy)" not in open_registry(None, tmp_path).models


def test_a_misspelt_model_is_nobodys_stand_in(tmp_path: Path) -> None:
    variants = {"fast": {"model": "vit_t"}, "accurate": {"model": "vit_hh", "reference": "fast"}}
    found, left_out = drop_unavailable_variants(settings(tmp_path, variants=variants))
    assert (found.variants["accurate"].model, left_out) == ("vit_hh", {})


def test_other_names_of_a_variant_that_is_left_out_follow_it(tmp_path: Path) -> None:
    router = {"default": "fast", "aliases": {"mobile": "quantized"}}
    found, _ = drop_unavailable_variants(settings(tmp_path, router=router))
    assert found.router.aliases == {"mobile": "fast", "quantized": "fast"}


def test_a_default_variant_that_is_not_here_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(RegistryError, match="quantise"):
        drop_unavailable_variants(settings(tmp_path, router={"default": "quantized"}))
    alone = {"fast": {"model": "vit_t"}, "quantized": {"model": "vit_t_int8"}}
    with pytest.raises(RegistryError, match="variant quantized"):
        drop_unavailable_variants(settings(tmp_path, variants=alone))


@pytest.mark.parametrize("content", ["", "{}", "[" * 5000, "x" * (2**20 + 1)])
def test_a_damaged_manifest_is_as_none(tmp_path: Path, content: str) -> None:
    make(tmp_path)
    (tmp_path / "vit_t_int8" / MANIFEST).write_text(content, encoding="utf-8")
    assert "vit_t_int8" not in open_registry(None, tmp_path).models
    assert "quantized" in drop_unavailable_variants(settings(tmp_path))[1]


def test_a_manifest_cannot_take_the_place_of_a_registry_model(tmp_path: Path) -> None:
    make(tmp_path)
    (tmp_path / "vit_t_int8").rename(tmp_path / "vit_b")
    assert open_registry(None, tmp_path).get("vit_b") == load_registry().get("vit_b")


def test_the_registry_says_which_engine_runs_a_model(tmp_path: Path) -> None:
    registry = load_registry()
    on_gpu = Compute(device="cuda", dtype="float16")
    assert registry.get("vit_t").engine(Compute()) == "openvino"
    assert registry.get("vit_t").engine(on_gpu) == "torch"
    assert registry.get("vit_t").engine(Compute(engine="compiled")) == "compiled"
    sam2 = registry.get("sam2_hiera_tiny")
    assert sam2.engine(Compute()) == "openvino"
    assert sam2.engine(Compute(engine="onnxruntime")) == "onnxruntime"
    assert sam2.engine(Compute(device="cuda")) == "onnxruntime"
    for model, compute in (
        ("sam2_hiera_tiny", Compute(engine="torch")),
        ("vit_h", Compute(engine="openvino")),
        ("vit_t", Compute(engine="onnxruntime")),
    ):
        with pytest.raises(ValueError, match="runs on"):
            registry.get(model).engine(compute)
    with pytest.raises(ValueError, match="no engine"):
        make(tmp_path).spec.engine(on_gpu)
    with pytest.raises(ValueError, match="for CPUs"):
        Compute(device="cuda", engine="openvino")


def test_a_registry_entry_lists_only_engines_that_can_run_it() -> None:
    for model, engine in (("vit_b", "openvino"), ("efficientdet_lite2", "torch")):
        entry = load_registry().get(model).model_dump() | {"engines": [engine]}
        with pytest.raises(ValueError, match="engines of such a model"):
            ModelSpec.model_validate(entry)


def test_warm_up_takes_the_batch_sizes_in_use() -> None:
    source = ModelSource()
    assert source.warm_up_sizes("vit_t", Compute(), 8) == (1,)
    assert source.warm_up_sizes("vit_t", Compute(engine="torch"), 8) == (1, 8)
    assert source.warm_up_sizes("vit_t", Compute(engine="compiled"), 5) == (1, 2, 4, 8)
    assert source.warm_up_sizes("vit_t", Compute(engine="compiled"), 1) == (1,)


def test_a_folder_of_other_things_is_not_written_to(tmp_path: Path) -> None:
    precious = tmp_path / "thesis.txt"
    precious.write_text("years of work", encoding="utf-8")
    calibration, effort = Calibration("none", ()), Effort()
    with pytest.raises(QuantiseError, match="contains no model"):
        quantise(
            ModelSource(), "vit_t", "vit_t_int8", calibration, effort, 1, tmp_path, lambda _: None
        )
    assert precious.read_text(encoding="utf-8") == "years of work"
