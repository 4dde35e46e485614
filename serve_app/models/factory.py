"""From a registry entry to a loaded engine."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from serve_app.core.ports import DecoderEngine, EncoderEngine
from serve_app.core.settings import Compute, GraphSettings, OpenClipSettings, TextSettings
from serve_app.core.types import DecodeJob, DecodeOptions, Embedding, Prompt
from serve_app.engines.text.engine import TextScoringEngine, build_text_engine
from serve_app.models.quantized import open_registry
from serve_app.models.registry import ModelSpec, Registry
from serve_app.models.weights import WeightStore


@dataclass(frozen=True)
class ModelSource:
    """The registry and weights of one configuration; verifies files before they are loaded.

    Attributes:
        registry_path: a registry file; None: the packaged one.
        weights_dir: where weights are kept; None: the user's cache.
        offline: never fetch.
    """

    registry_path: str | None = None
    weights_dir: str | None = None
    offline: bool = False

    @classmethod
    def of(cls, settings: GraphSettings) -> ModelSource:
        return cls(settings.registry, settings.weights_dir, settings.offline)

    @cached_property
    def registry(self) -> Registry:
        return open_registry(self.registry_path, self.store.root)

    @cached_property
    def store(self) -> WeightStore:
        return WeightStore(Path(self.weights_dir) if self.weights_dir else None, self.offline)

    @property
    def graphs(self) -> Path:
        """Where graphs are kept that were traced from models."""
        return self.store.root / "graphs"

    def spec(self, model: str) -> ModelSpec:
        """The registry's entry of a model."""
        return self.registry.get(model)

    def files(self, model: str) -> dict[str, Path]:
        """Verified weight files of a model by key, fetched if missing.

        Raises:
            WeightsUnavailable: no source gave them.
        """
        return self.store.ensure(model, self.spec(model))


def load_text(source: ModelSource, settings: TextSettings) -> TextScoringEngine:
    """Load the text engine of a configuration, with the registry's weights."""

    def open_clip() -> OpenClipSettings:
        chosen = settings.open_clip
        if chosen.pretrained:
            return chosen
        spec = source.spec(chosen.model)
        # "auto" takes what is here; only an engine that is asked for is worth a download.
        offline = source.offline or settings.engine != "open_clip"
        path = WeightStore(source.store.root, offline).ensure(chosen.model, spec)["weights"]
        named = {
            "architecture": spec.architecture,
            "pretrained": str(path),
            "sha256": spec.files["weights"].sha256,
        }
        return chosen.model_copy(update=named)

    def sentence_model() -> Path:
        return source.files(settings.labels.model)["config"].parent

    return build_text_engine(settings, sentence_model, open_clip, source.offline)


def load_encoder(source: ModelSource, model: str, compute: Compute) -> EncoderEngine:
    """Load the encoder of a segmentation model onto its device."""
    spec, files = source.spec(model), source.files(model)
    if spec.family == "sam2_onnx":
        from serve_app.engines.sam2.onnx import Sam2OnnxEncoder

        return Sam2OnnxEncoder(files["encoder"], compute)
    architecture = _sam_architecture(model, spec)
    engine = spec.engine(compute)
    if engine == "openvino":
        from serve_app.engines.sam.encoder_openvino import OpenVinoEncoder, kept_tiny_vit

        graph = files.get("encoder") or kept_tiny_vit(
            files["checkpoint"], spec.weights_hash, source.graphs
        )
        return OpenVinoEncoder(graph, compute)
    from serve_app.engines.devices import apply_compute
    from serve_app.engines.sam.encoder import SamEncoder
    from serve_app.engines.sam.model import load_sam

    apply_compute(compute)
    return SamEncoder(load_sam(architecture, files["checkpoint"]), compute, engine == "compiled")


def warm_up_sizes(spec: ModelSpec, compute: Compute, most: int) -> tuple[int, ...]:
    """The numbers of images with which an encoder should run before it is asked.

    Engines that take images one by one need one pass; PyTorch chooses its kernels by the size of
    a batch, and compiles for powers of two.

    Args:
        most: the largest batch in use.
    """
    engine = spec.engine(compute)
    if engine == "torch":
        return tuple(sorted({1, most}))
    if engine == "compiled":
        from serve_app.engines.sam.encoder import batch_sizes

        return batch_sizes(most)
    return (1,)


def load_decoder(source: ModelSource, model: str, compute: Compute) -> DecoderEngine:
    """A segmentation model's prompt encoder and mask decoder on its device, having run once."""
    decoder = _decoder(source, model, compute)
    _warm(decoder, source.spec(model))
    return decoder


def _decoder(source: ModelSource, model: str, compute: Compute) -> DecoderEngine:
    spec, files = source.spec(model), source.files(model)
    from serve_app.engines.devices import apply_compute

    apply_compute(compute)
    if spec.family == "sam2_onnx":
        from serve_app.engines.sam2.onnx import Sam2OnnxDecoder

        return Sam2OnnxDecoder(files["decoder"], compute)
    architecture = _sam_architecture(model, spec)
    from serve_app.engines.sam.decoder import SamDecoder
    from serve_app.engines.sam.model import load_sam

    sam = load_sam(architecture, files["checkpoint"], with_encoder=False)
    return SamDecoder(sam, compute, source.graphs, spec.weights_hash)


def _sam_architecture(model: str, spec: ModelSpec) -> str:
    if spec.family != "sam" or spec.architecture is None:
        raise ValueError(f"{model} is of the family {spec.family}, which segments nothing")
    return spec.architecture


def _warm(decoder: DecoderEngine, spec: ModelSpec) -> None:
    """Run it once, which takes many times as long as a later pass: on an image of nothing."""
    shapes: dict[str, tuple[int, ...]] = {"image_embed": (256, 64, 64)}
    if spec.family == "sam2_onnx":
        shapes |= {"high_res_feats_0": (32, 256, 256), "high_res_feats_1": (64, 128, 128)}
    tensors = {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}
    box = Prompt(box=np.array([8, 8, 56, 56], np.float32))
    decoder.decode_batch([DecodeJob(Embedding(tensors, height=64, width=64), box, DecodeOptions())])
