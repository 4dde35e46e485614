"""SAM's image encoder as an `EncoderEngine` on a CPU, run by OpenVINO."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from serve_app.core.inference import Embedding
from serve_app.core.settings import Compute
from serve_app.core.types import RgbArray
from serve_app.engines.openvino import ov
from serve_app.engines.openvino.runtime import Network, graph_name, load_or_build_graph
from serve_app.engines.sam import tiny_vit_openvino
from serve_app.engines.sam.frame import model_input
from serve_app.engines.sam.tiny_vit_openvino import tiny_vit_graph


class OpenVinoEncoder:
    """Embeds images one by one: the graph takes one image, which uses all cores of a CPU.

    The embedding's only tensor is ``image_embed (256, 64, 64) float32``.

    Args:
        graph: from ``(1, 3, 1024, 1024)`` to ``(256, 64, 64)``, or the path of a saved one.
        compute: threads, and the precision of the floating-point parts of the graph.
    """

    def __init__(self, graph: ov.Model | Path, compute: Compute) -> None:
        precision = "bf16" if compute.dtype == "bfloat16" else "f32"
        self._network = Network(graph, compute.threads, precision)

    def encode_batch(self, images: Sequence[RgbArray]) -> list[Embedding]:
        """Embed upright ``(H, W, 3) uint8`` images of any sizes."""
        return [self._encode(image) for image in images]

    def _encode(self, image: RgbArray) -> Embedding:
        features = self._network(model_input(image, "pad"))[0]
        return Embedding({"image_embed": features}, image.shape[0], image.shape[1])


def load_or_build_tiny_vit(checkpoint: Path, weights_hash: str, folder: Path) -> ov.Model:
    """As `tiny_vit_from`, but saved in a folder: later starts do not load torch."""
    name = graph_name(["tiny_vit", weights_hash], Path(tiny_vit_openvino.__file__), ())
    return load_or_build_graph(folder / name, lambda: tiny_vit_from(checkpoint))


def tiny_vit_from(checkpoint: Path) -> ov.Model:
    """MobileSAM's encoder with the weights of a verified checkpoint."""
    from serve_app.engines.sam.checkpoint import ENCODER_PREFIX, read_checkpoint

    return tiny_vit_graph(
        {
            name.removeprefix(ENCODER_PREFIX): tensor.float().numpy()
            for name, tensor in read_checkpoint("vit_t", checkpoint).items()
            if name.startswith(ENCODER_PREFIX)
        }
    )
