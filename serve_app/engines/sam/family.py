"""The family ``sam``: Segment Anything (Kirillov et al. 2023) and MobileSAM."""

from __future__ import annotations

from typing import Any

from serve_app.core.ports import DecoderEngine, EncoderEngine
from serve_app.core.settings import Compute, EngineName
from serve_app.engines.family import Family, Segmentation, Weights


def _engines(architecture: str | None, quantized: bool) -> tuple[EngineName, ...]:
    if quantized:
        return ("openvino",)
    return ("torch", "compiled", "openvino") if architecture == "vit_t" else ("torch", "compiled")


def _load_encoder(weights: Weights, engine: EngineName, compute: Compute) -> EncoderEngine:
    if engine == "openvino":
        from serve_app.engines.sam.encoder_openvino import OpenVinoEncoder, load_or_build_tiny_vit

        graph = weights.paths.get("encoder") or load_or_build_tiny_vit(
            weights.paths["checkpoint"], weights.hash, weights.graphs
        )
        return OpenVinoEncoder(graph, compute)
    from serve_app.engines.sam.encoder import SamEncoder

    return SamEncoder(_load_sam(weights, compute, with_encoder=True), compute, engine == "compiled")


def _load_decoder(weights: Weights, compute: Compute) -> DecoderEngine:
    from serve_app.engines.sam.decoder import SamDecoder

    sam = _load_sam(weights, compute, with_encoder=False)
    return SamDecoder(sam, compute, weights.graphs, weights.hash)


def _load_sam(weights: Weights, compute: Compute, with_encoder: bool) -> Any:
    from serve_app.engines.devices import apply_compute
    from serve_app.engines.sam.model import load_sam

    apply_compute(compute)
    return load_sam(str(weights.architecture), weights.paths["checkpoint"], with_encoder)


def _warm_up_sizes(engine: EngineName, most: int) -> tuple[int, ...]:
    if engine == "torch":  # chooses its kernels by the size of a batch
        return tuple(sorted({1, most}))
    if engine == "compiled":
        from serve_app.engines.sam.encoder import batch_sizes

        return batch_sizes(most)
    return (1,)


SAM = Family(
    name="sam",
    file_keys=frozenset({"checkpoint"}),
    quantized_keys=frozenset({"encoder", "encoder_weights"}),  # OpenVINO's files
    architectures=("vit_t", "vit_b", "vit_l", "vit_h"),
    segmentation=Segmentation(
        engines=_engines,
        resize_mode="pad",
        embedding_shapes={"image_embed": (256, 64, 64)},
        load_encoder=_load_encoder,
        load_decoder=_load_decoder,
        warm_up_sizes=_warm_up_sizes,
    ),
)
