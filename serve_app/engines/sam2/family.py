"""The family ``sam2_onnx``: SAM 2 (Ravi et al. 2024) exported to ONNX."""

from __future__ import annotations

from serve_app.core.ports import DecoderEngine, EncoderEngine
from serve_app.core.settings import Compute, EngineName
from serve_app.engines.family import Family, Segmentation, Weights


def _load_encoder(weights: Weights, engine: EngineName, compute: Compute) -> EncoderEngine:
    if engine == "openvino":
        from serve_app.engines.sam2.encoder_openvino import Sam2OpenVinoEncoder, load_or_convert

        graph = load_or_convert(weights.paths["encoder"], weights.hash, weights.graphs)
        return Sam2OpenVinoEncoder(graph, compute)
    from serve_app.engines.sam2.onnx import Sam2OnnxEncoder

    return Sam2OnnxEncoder(weights.paths["encoder"], compute)


def _load_decoder(weights: Weights, compute: Compute) -> DecoderEngine:
    from serve_app.engines.devices import apply_compute
    from serve_app.engines.sam2.onnx import Sam2OnnxDecoder

    apply_compute(compute)
    return Sam2OnnxDecoder(weights.paths["decoder"], compute)


SAM2_ONNX = Family(
    name="sam2_onnx",
    file_keys=frozenset({"encoder", "decoder"}),
    segmentation=Segmentation(
        engines=lambda architecture, quantized: ("openvino", "onnxruntime"),
        resize_mode="stretch",
        embedding_shapes={
            "image_embed": (256, 64, 64),
            "high_res_feats_0": (32, 256, 256),
            "high_res_feats_1": (64, 128, 128),
        },
        load_encoder=_load_encoder,
        load_decoder=_load_decoder,
        dtypes=frozenset({"float32"}),
        memory_fraction=False,
    ),
)
