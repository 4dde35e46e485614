"""SAM 2's image encoder as an `EncoderEngine` on a CPU, run by OpenVINO.

The published file is in onnxruntime's own format.  onnxruntime saves it as plain ONNX, without
changes, and OpenVINO reads that; the graph is kept in the folder of graphs.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

from serve_app.core.inference import Embedding
from serve_app.core.settings import Compute
from serve_app.core.types import RgbArray
from serve_app.engines.openvino import ov
from serve_app.engines.openvino.runtime import (
    Network,
    core,
    graph_name,
    load_or_build_graph,
    precision_of,
)
from serve_app.engines.sam.frame import model_input


class Sam2OpenVinoEncoder:
    """SAM 2's image encoder; tensors as in `Embedding`, float32.

    Args:
        graph: from ``image (1, 3, 1024, 1024)`` to the embedding's tensors, each in a batch of one.
        compute: threads and precision.
    """

    def __init__(self, graph: ov.Model, compute: Compute) -> None:
        self._names = [output.get_any_name() for output in graph.outputs]
        self._network = Network(graph, compute.threads, precision_of(compute))

    def encode_batch(self, images: Sequence[RgbArray]) -> list[Embedding]:
        """Embed upright ``(H, W, 3) uint8`` images, one by one: the export has no batch."""
        return [self._encode(image) for image in images]

    def _encode(self, image: RgbArray) -> Embedding:
        values = self._network(model_input(image, "stretch"))
        tensors = {name: value[0] for name, value in zip(self._names, values, strict=True)}
        return Embedding(tensors, height=image.shape[0], width=image.shape[1])


def load_or_convert(file: Path, weights_hash: str, folder: Path) -> ov.Model:
    """The graph of a file of onnxruntime, converted once and then saved in a folder."""
    name = graph_name(["sam2", weights_hash], Path(__file__), ("onnxruntime",))
    return load_or_build_graph(folder / name, lambda: _convert(file))


def _convert(file: Path) -> ov.Model:
    # Imported here: once the graph is saved, encoders do not need onnxruntime.
    import onnxruntime

    options = onnxruntime.SessionOptions()
    # The file's operators stay as they are: onnxruntime's optimised ones are its own.
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.add_session_config_entry("session.save_model_format", "ONNX")
    with tempfile.TemporaryDirectory() as scratch:
        plain = Path(scratch) / "encoder.onnx"
        options.optimized_model_filepath = str(plain)
        onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
        return core().read_model(plain)
