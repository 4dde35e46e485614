"""The decoder's modules by OpenVINO, for CPUs: it fuses element-wise operations into products."""

from __future__ import annotations

from segment_anything.modeling import MaskDecoder
from torch import Tensor

from serve_app.engines.devices import as_tensor
from serve_app.engines.openvino.runtime import Network
from serve_app.engines.openvino.traced import Graphs
from serve_app.engines.sam.stages import MASKS, Attended
from serve_app.engines.sam.two_way import GRID, ImageSide, ProjectImage, TwoWay, Upscale

_USUAL_TOKENS = 2
"""A click and its "no box" token, or the two corners of a box."""


class OpenVinoStages:
    """OpenVINO on a CPU, in single precision.

    A chunk has the prompts of one image, so that its first layer is shared without a copy.  Two
    prompts together take less time each than one alone; more only take more memory.
    """

    chunk = 2
    mixes_images = False

    def __init__(
        self, decoder: MaskDecoder, image_pe: Tensor, threads: int, graphs: Graphs
    ) -> None:
        """Compile the three modules.

        Args:
            decoder, image_pe: as `ProjectImage` takes them; on the CPU.
            threads: CPU threads to use.
            graphs: where traced graphs are saved.
        """
        channels = image_pe.shape[1]
        positions, depth = GRID * GRID, channels // 8
        heads = decoder.transformer.layers[0].cross_attn_token_to_image.num_heads
        dim = channels // 2 // heads
        side = [(1, positions, channels), *[(1, heads, positions, dim)] * 3]

        def prompts(count: int) -> list[tuple[int, ...]]:
            return [*side, (count, _USUAL_TOKENS, channels), (count, _USUAL_TOKENS)]

        def finished(count: int) -> list[tuple[int, ...]]:
            return [(count, positions, channels), (count, MASKS, depth)]

        self._project = Network(
            graphs.get(
                ProjectImage,
                lambda: ProjectImage(decoder, image_pe),
                [tuple(image_pe.shape)],
                [()],
            ),
            threads,
        )
        self._attend = Network(
            graphs.get(
                TwoWay,
                lambda: TwoWay(decoder, image_pe),
                prompts(self.chunk),
                [(), (), (), (), (0, 1), (0, 1)],
            ),
            threads,
        )
        self._upscale = Network(
            graphs.get(Upscale, lambda: Upscale(decoder), finished(self.chunk), [(0,), (0,)]),
            threads,
        )
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


def _run(network: Network, *tensors: Tensor) -> list[Tensor]:
    """A pass; the same thread's next one overwrites the outputs."""
    arrays = [tensor.contiguous().numpy() for tensor in tensors]
    return [as_tensor(view) for view in network.views(*arrays)]
