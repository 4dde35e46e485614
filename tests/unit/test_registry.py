"""The registry's schema: what it holds, and what it refuses."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from serve_app.models.registry import (
    NpmSource,
    PypiSource,
    Registry,
    RegistryError,
    UrlSource,
    load_registry,
)

SHA = "0" * 64


def model(**changes: Any) -> dict[str, Any]:
    spec: dict[str, Any] = {
        "family": "sam",
        "architecture": "vit_b",
        "title": "A model",
        "license": "MIT",
        "origin": "a test",
        "preprocessing": "sam-1",
        "files": {
            "checkpoint": {
                "name": "a.pth",
                "size": 3,
                "sha256": SHA,
                "sources": [{"url": "https://example.org/a.pth"}],
            }
        },
    }
    return copy.deepcopy(spec | changes)


def registry_with_file(**changes: Any) -> Registry:
    spec = model()
    spec["files"]["checkpoint"] |= changes
    return Registry.model_validate({"models": {"m": spec}})


def test_packaged_registry_holds_the_documented_models() -> None:
    registry = load_registry()
    assert set(registry.models) == {
        "vit_t",
        "vit_b",
        "vit_l",
        "vit_h",
        "sam2_hiera_tiny",
        "efficientdet_lite2",
        "minilm_l6_v2",
        "open_clip_vit_b_32",
    }
    for name in ("vit_t", "vit_b", "vit_l", "vit_h"):
        assert registry.get(name).architecture == name


def test_sam_2_alone_stretches_images() -> None:
    models = load_registry().models.values()
    segmenters = [spec for spec in models if spec.description.segmentation is not None]
    stretching = {s.family for s in segmenters if s.segmentation.resize_mode == "stretch"}
    assert stretching == {"sam2_onnx"} < {spec.family for spec in segmenters}


def test_every_packaged_file_asks_an_official_address_first() -> None:
    for spec in load_registry().models.values():
        for file in spec.files.values():
            assert isinstance(file.sources[0], UrlSource)


def test_models_without_a_hub_route_have_a_package() -> None:
    registry = load_registry()
    for name in ("vit_t", "sam2_hiera_tiny", "efficientdet_lite2", "minilm_l6_v2"):
        for file in registry.get(name).files.values():
            assert isinstance(file.sources[-1], PypiSource | NpmSource)


def test_unknown_model_names_the_known_ones() -> None:
    with pytest.raises(RegistryError, match=r"'vit_x'.*vit_b.*vit_t"):
        load_registry().get("vit_x")


@pytest.mark.parametrize(
    "name",
    ["/etc/a.pth", "../a.pth", "x/../a.pth", "a/b/c.pth", "..", ".hidden", "x\\a.pth", "", "a/"],
)
def test_file_name_cannot_leave_its_folder(name: str) -> None:
    with pytest.raises(ValidationError):
        registry_with_file(name=name)


def test_file_name_may_lie_in_one_folder() -> None:
    registry = registry_with_file(name="1_Pooling/config.json")
    assert registry.get("m").files["checkpoint"].name == "1_Pooling/config.json"


@pytest.mark.parametrize("name", ["../m", "a/b", "", ".m", "M"])
def test_model_name_is_a_plain_folder_name(name: str) -> None:
    with pytest.raises(ValidationError):
        Registry.model_validate({"models": {name: model()}})


@pytest.mark.parametrize(
    "source",
    [
        {"url": "http://example.org/a"},
        {"url": "https://user:secret@example.org/a"},
        {"url": "file:///etc/passwd"},
        {"local": "relative/a.pth"},
        {"url": "https://example.org/a", "local": "/a"},
        {"ftp": "x"},
        "https://example.org/a",
        {"pypi": "a>=1", "kind": "wheel", "sha256": SHA, "member": "a"},
        {"pypi": "--index-url=x==1", "kind": "wheel", "sha256": SHA, "member": "a"},
        {"pypi": "a==1\n--pre", "kind": "wheel", "sha256": SHA, "member": "a"},
        {"pypi": "a==1", "kind": "egg", "sha256": SHA, "member": "a"},
        {"pypi": "a==1", "kind": "wheel", "member": "a"},
        {"npm": "a@latest", "sha256": SHA, "member": "a"},
        {"npm": "git+ssh://x@1.0.0", "sha256": SHA, "member": "a"},
        {"npm": "a@1.0.0", "sha256": SHA, "member": "../a"},
        {"npm": "a@1.0.0", "sha256": SHA, "member": "/a"},
        {"npm": "a@1.0.0", "sha256": "short", "member": "a"},
        {"npm": "a@1.0.0", "sha256": SHA, "member": "a", "extra": 1},
    ],
)
def test_source_is_refused(source: Any) -> None:
    with pytest.raises(ValidationError):
        registry_with_file(sources=[source])


@pytest.mark.parametrize(
    "changes",
    [
        {"architecture": "vit_x"},
        {"architecture": None},
        {"family": "yolo"},
        {"files": {}},
        {"family": "open_clip"},
        {"family": "open_clip", "files": {}},
        {"family": "sam2_onnx"},
        {"preprocessing": ""},
        {"surprise": 1},
    ],
)
def test_model_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Registry.model_validate({"models": {"m": model(**changes)}})


def test_two_files_of_one_name_are_refused() -> None:
    file = model()["files"]["checkpoint"]
    spec = model(family="sentence_transformer", architecture=None, files={"a": file, "b": file})
    with pytest.raises(ValidationError, match="same name"):
        Registry.model_validate({"models": {"m": spec}})


def test_weights_hash_follows_the_files_and_nothing_else() -> None:
    first = registry_with_file().get("m").weights_hash
    assert registry_with_file(name="b.pth", sources=[]).get("m").weights_hash == first
    assert registry_with_file(sha256="1" * 64).get("m").weights_hash != first


def test_own_registry_file(tmp_path: Path) -> None:
    path = tmp_path / "own.yaml"
    path.write_text(yaml.safe_dump({"models": {"mine": model()}}))
    assert load_registry(path).get("mine").title == "A model"


@pytest.mark.parametrize(
    "text", ["models: [", "models: {}", "[]", "", "!!python/object/apply:os.getcwd []", "\x00"]
)
def test_broken_registry_file(tmp_path: Path, text: str) -> None:
    path = tmp_path / "own.yaml"
    path.write_text(text)
    with pytest.raises(RegistryError, match=r"own\.yaml"):
        load_registry(path)


def test_missing_registry_file(tmp_path: Path) -> None:
    with pytest.raises(RegistryError, match="cannot be read"):
        load_registry(tmp_path / "none.yaml")
