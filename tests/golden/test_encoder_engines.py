"""MobileSAM's encoder by each engine, against `segment_anything` around timm in plain PyTorch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from segment_anything import SamPredictor

from serve_app.core.ports import EncoderEngine
from serve_app.core.settings import Compute, GraphSettings
from serve_app.core.types import Float32Array
from serve_app.engines.sam import encoder as torch_encoder
from serve_app.engines.sam.model import load_sam
from serve_app.models.factory import ModelSource
from serve_app.models.quantized import drop_unavailable_variants
from serve_tools.profiling.protocol import Effort
from serve_tools.workshop.quantise import Calibration, quantise

from .cases import PHOTOS, TWO_THREADS, photo

pytestmark = pytest.mark.weights


def cosine(a: NDArray[np.float32], b: NDArray[np.float32]) -> float:
    x, y = a.astype(np.float64).ravel(), b.astype(np.float64).ravel()
    return float(x @ y / np.linalg.norm(x) / np.linalg.norm(y))


@pytest.fixture(scope="module")
def wanted(weight_paths: Callable[[str], dict[str, Path]]) -> dict[str, Float32Array]:
    predictor = SamPredictor(load_sam("vit_t", weight_paths("vit_t")["checkpoint"]))
    found = {}
    for name in PHOTOS:
        with torch.inference_mode():
            predictor.set_image(photo(name))
            found[name] = predictor.get_image_embedding()[0].numpy()
    return found


def embedded(encoder: EncoderEngine) -> dict[str, Float32Array]:
    answers = encoder.encode_batch([photo(name) for name in PHOTOS])
    return {n: a.tensors["image_embed"] for n, a in zip(PHOTOS, answers, strict=True)}


@pytest.mark.parametrize("engine", ["openvino", "torch"])
def test_embeddings_are_those_of_segment_anything(
    wanted: dict[str, Float32Array], engine: str
) -> None:
    compute = Compute.model_validate({"threads": 2, "engine": engine})
    found = embedded(ModelSource().load_encoder("vit_t", compute))
    for name in PHOTOS:
        assert found[name].dtype == np.float32
        assert cosine(found[name], wanted[name]) >= 0.999999
        np.testing.assert_allclose(found[name], wanted[name], atol=2e-5)


def test_half_precision_holds_the_encoders_values(
    wanted: dict[str, Float32Array],
) -> None:
    """As on a GPU; a CPU does it too, slowly."""
    half = Compute.model_construct(device="cpu", dtype="float16", threads=2, engine="torch")
    encoder = ModelSource().load_encoder("vit_t", half)
    found = encoder.encode_batch([photo("chelsea")])[0].tensors["image_embed"]
    assert found.dtype == np.float16
    assert cosine(found, wanted["chelsea"]) >= 0.9999


def test_a_compiled_encoder_sees_only_the_sizes_it_was_warmed_up_with(
    wanted: dict[str, Float32Array], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a compiler makes of the module is its own; the batches around it are ours."""
    sizes = []

    def uncompiled(module: torch.nn.Module, device: torch.device) -> torch_encoder.Run:
        def run(x: torch.Tensor) -> torch.Tensor:
            sizes.append(len(x))
            answer: torch.Tensor = module(x)
            return answer

        return run

    monkeypatch.setattr(torch_encoder, "compiled_pass", uncompiled)
    encoder = ModelSource().load_encoder("vit_t", Compute(threads=2, engine="compiled"))
    found = embedded(encoder)
    assert sizes == [4]
    for name in PHOTOS:
        np.testing.assert_allclose(found[name], wanted[name], atol=1e-4)


def test_an_int8_encoder_is_made_checked_and_loaded(
    wanted: dict[str, Float32Array], tmp_path: Path
) -> None:
    source = ModelSource()
    # By boxes: two photos calibrate too little for the vaguest of a click's three masks.
    effort = Effort(images=2, objects=4, forms=("box-1",), repeats=1)
    photos = Calibration("two photos", [photo("chelsea"), photo("astronaut")])
    out = tmp_path / "vit_t_int8"
    made = quantise(source, "vit_t", "vit_t_int8", photos, effort, 2, out, lambda text: None)
    figures = made.figures
    assert 0.97 < figures.embedding_cosine < 0.99999  # int8, and not the original
    assert figures.mask_iou > 0.9
    assert abs(figures.iou_loss) < 0.05
    assert made.spec.files["encoder_weights"].size < 0.5 * made.spec.files["checkpoint"].size

    variants = {
        "fast": {"model": "vit_t"},
        "quantized": {"model": "vit_t_int8", "reference": "fast"},
    }
    arguments = {
        "weights_dir": str(tmp_path),
        "variants": variants,
        "quantized": {"least_speedup": 0.01, "most_iou_loss": 1},
        "offline": True,
    }
    settings, left_out = drop_unavailable_variants(GraphSettings.model_validate(arguments))
    assert left_out == {}
    found = embedded(ModelSource.of(settings).load_encoder("vit_t_int8", TWO_THREADS))
    assert 0.97 < cosine(found["coffee"], wanted["coffee"]) < 0.99999
    assert not (tmp_path / "vit_t_int8" / "encoder.bin").samefile(
        source.weights("vit_t").paths["checkpoint"]
    )
