"""The decoder's modules by OpenVINO, for CPUs: it fuses element-wise operations into products."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path

import torch
from segment_anything.modeling import MaskDecoder
from torch import Tensor, nn

from serve_app.core.settings import Compute
from serve_app.engines.devices import as_tensor
from serve_app.engines.openvino import ov
from serve_app.engines.openvino.runtime import (
    Network,
    graph_name,
    load_or_build_graph,
    precision_of,
)
from serve_app.engines.sam import two_way
from serve_app.engines.sam.two_way import (
    GRID,
    MASKS,
    Attended,
    ImageSide,
    ProjectImage,
    TwoWay,
    Upscale,
)

_USUAL_TOKENS = 2
"""A click and its "no box" token, or the two corners of a box."""

_Shape = tuple[int, ...]


class OpenVinoStages:
    """As `TorchStages`, by OpenVINO on a CPU; tensors are float32 whatever the precision.

    A chunk has the prompts of one image, so that its first layer is shared without a copy.  Two
    prompts together take less time each than one alone; more only take more memory.
    """

    chunk = 2
    mixes_images = False

    def __init__(
        self,
        decoder: MaskDecoder,
        image_pe: Tensor,
        compute: Compute,
        graphs: Path | None,
        weights_hash: str,
    ) -> None:
        """Compile the three modules.

        Args:
            decoder, image_pe: as `ProjectImage` takes them; on the CPU.
            compute: CPU threads to use, and the precision: float32 or bfloat16.
            graphs, weights_hash: as `traced_graph` takes them.
        """

        def network(module: nn.Module, shapes: Sequence[_Shape], free: Sequence[_Shape]) -> Network:
            graph = traced_graph(module, shapes, free, graphs, weights_hash)
            return Network(graph, compute.threads, precision_of(compute))

        channels = image_pe.shape[1]
        positions, depth = GRID * GRID, channels // 8
        heads = decoder.transformer.layers[0].cross_attn_token_to_image.num_heads
        dim = channels // 2 // heads
        side = [(1, positions, channels), *[(1, heads, positions, dim)] * 3]

        def prompts(count: int) -> list[_Shape]:
            return [*side, (count, _USUAL_TOKENS, channels), (count, _USUAL_TOKENS)]

        def finished(count: int) -> list[_Shape]:
            return [(count, positions, channels), (count, MASKS, depth)]

        self._project = network(ProjectImage(decoder, image_pe), [tuple(image_pe.shape)], [()])
        self._attend = network(
            TwoWay(decoder, image_pe), prompts(self.chunk), [(), (), (), (), (0, 1), (0, 1)]
        )
        self._upscale = network(Upscale(decoder), finished(self.chunk), [(0,), (0,)])
        for count in (1, self.chunk):
            self._attend.specialize(prompts(count))
            self._upscale.specialize(finished(count))

    def project(self, dense: Tensor) -> ImageSide:
        return ImageSide(*(tensor.clone() for tensor in _run(self._project, dense)))

    def attend(self, side: ImageSide, prompts: Tensor, padding: Tensor) -> Attended:
        iou, weights, keys = _run(self._attend, *side, prompts, padding)
        return iou, weights, keys

    def upscale(self, keys: Tensor, weights: Tensor) -> Tensor:
        return _run(self._upscale, keys, weights)[0]


def traced_graph(
    module: nn.Module,
    shapes: Sequence[_Shape],
    free: Sequence[_Shape],
    graphs: Path | None,
    weights_hash: str,
) -> ov.Model:
    """A module of `serve_app.engines.sam.two_way` as a graph, traced or read from a folder.

    Tracing takes seconds and hundreds of megabytes; a saved graph is mapped into memory in
    milliseconds.

    Args:
        module: its inputs are float32 tensors.
        shapes: example shapes of the inputs.
        free: the axes of variable length, for each input.
        graphs: the folder of saved graphs; None, or one that cannot be written: always traced.
        weights_hash: of the model.
    """
    if graphs is None:
        return _trace(module, shapes, free)
    parts = [weights_hash, type(module).__name__, repr((shapes, free))]
    name = graph_name(parts, Path(two_way.__file__), ("torch", "segment-anything"))
    return load_or_build_graph(graphs / name, lambda: _trace(module, shapes, free))


def _trace(module: nn.Module, shapes: Sequence[_Shape], free: Sequence[_Shape]) -> ov.Model:
    with torch.no_grad(), warnings.catch_warnings():
        # torch announces that tracing is deprecated; the conversion is OpenVINO's.
        warnings.simplefilter("ignore", FutureWarning)
        example = tuple(torch.zeros(shape) for shape in shapes)
        model = ov.convert_model(module.eval(), example_input=example)
    lengths = [list(shape) for shape in shapes]
    for shape, axes in zip(lengths, free, strict=True):
        for axis in axes:
            shape[axis] = -1
    model.reshape(dict(enumerate(map(ov.PartialShape, lengths))))
    return model


def _run(network: Network, *tensors: Tensor) -> list[Tensor]:
    """A pass; the same thread's next one overwrites the outputs."""
    arrays = [tensor.contiguous().numpy() for tensor in tensors]
    return [as_tensor(view) for view in network.views(*arrays)]
