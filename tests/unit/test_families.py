"""Model families: known by name, and special nowhere outside their folders."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from serve_app.core.settings import Compute, EngineName, VariantSettings
from serve_app.engines.family import Family, Segmentation
from serve_app.models import families
from serve_app.models.factory import ModelSource
from serve_app.models.registry import ModelSpec, Registry, load_registry
from serve_app.profiles.plan import variant_info

from ..fakes.engines import FakeDecoder, FakeEncoder, no_masks

ROOT = Path(__file__).parents[2]
NAMES = "|".join(families.FAMILIES)
SPECIAL_CASE = re.compile(rf"""sam2|\.family (==|!=|in |not in )|[=!]= ["']({NAMES})["']""")


def test_no_family_is_a_special_case_outside_its_folder() -> None:
    found = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()}"
        for package in ("serve_app", "serve_tools", "graphs")
        for path in sorted((ROOT / package).rglob("*.py"))
        if path.relative_to(ROOT).parts[:3] != ("serve_app", "engines", "sam2")
        and path.name != "families.py"
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if SPECIAL_CASE.search(line)
    ]
    assert found == []


def test_an_unknown_family_is_refused_with_the_known_ones() -> None:
    spec = load_registry().get("vit_t").model_dump() | {"family": "yolo"}
    with pytest.raises(ValidationError, match=r"'yolo'; known: efficientdet, open_clip, sam, "):
        ModelSpec.model_validate(spec)


def test_every_family_does_one_thing() -> None:
    for family in families.FAMILIES.values():
        kinds = (family.segmentation, family.load_detector, family.text)
        assert sum(kind is not None for kind in kinds) == 1, family.name


@pytest.mark.parametrize("model", ["efficientdet_lite2", "minilm_l6_v2"])
def test_a_model_that_does_not_segment_is_no_variant(model: str) -> None:
    with pytest.raises(ValueError, match="do not segment"):
        variant_info("fast", VariantSettings(model=model), load_registry())
    with pytest.raises(ValueError, match="do not segment"):
        ModelSource(offline=True).load_encoder(model, Compute())


class ToyEncoder(FakeEncoder):
    def __init__(self, *made_with: Any) -> None:
        super().__init__()
        self.made_with = made_with


def toy_engines(architecture: str | None, quantized: bool) -> tuple[EngineName, ...]:
    return ("onnxruntime", "torch")


TOY = Family(
    name="toy",
    file_keys=frozenset({"weights"}),
    segmentation=Segmentation(
        engines=toy_engines,
        resize_mode="stretch",
        embedding_shapes={"e": (2, 3)},
        load_encoder=ToyEncoder,
        load_decoder=lambda weights, compute: FakeDecoder(masks_of=no_masks),
        dtypes=frozenset({"float32"}),
        memory_fraction=False,
    ),
)


def test_a_new_family_is_a_description_and_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Validated, described, loaded and warmed up without a change of anything else."""
    monkeypatch.setitem(families.FAMILIES, "toy", TOY)
    weights = tmp_path / "toy.bin"
    weights.write_bytes(b"abc")
    sha256 = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    file = {"name": "toy.bin", "size": 3, "sha256": sha256, "sources": [{"local": str(weights)}]}
    spec = {
        "family": "toy",
        "title": "A toy",
        "license": "MIT",
        "origin": "a test",
        "preprocessing": "toy-1",
        "files": {"weights": file},
    }
    registry = Registry.model_validate({"models": {"toy": spec}})
    path = tmp_path / "models.yaml"
    path.write_text(registry.model_dump_json(), encoding="utf-8")
    source = ModelSource(str(path), str(tmp_path / "cache"), offline=True)

    encoder = source.load_encoder("toy", Compute())
    assert isinstance(encoder, ToyEncoder)
    given, engine, _ = encoder.made_with
    assert (given.paths, engine) == ({"weights": weights}, "onnxruntime")
    decoder = source.load_decoder("toy", Compute())
    assert isinstance(decoder, FakeDecoder)
    (job,) = decoder.jobs
    assert {name: tensor.shape for name, tensor in job.embedding.tensors.items()} == {"e": (2, 3)}

    assert variant_info("v", VariantSettings(model="toy"), registry)["family"] == "toy"
    for compute, said in (({"dtype": "bfloat16"}, "float32"), ({"memory_fraction": 0.5}, "null")):
        variant = VariantSettings.model_validate(
            {"model": "toy", "decoder": {"compute": {"device": "cuda", **compute}}}
        )
        with pytest.raises(ValueError, match=said):
            variant_info("v", variant, registry)
