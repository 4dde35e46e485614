"""The decoder's modules by OpenVINO, for CPUs: it fuses what is element-wise into the products."""

from __future__ import annotations

import threading
from collections.abc import Sequence

import openvino
from segment_anything.modeling import MaskDecoder
from torch import Tensor

from serve_app.engines.devices import as_tensor
from serve_app.engines.openvino.runtime import core, cpu_options
from serve_app.engines.openvino.traced import Graphs
from serve_app.engines.sam.stages import MASKS, Attended
from serve_app.engines.sam.two_way import GRID, ImageSide, ProjectImage, TwoWay, Upscale

_USUAL_TOKENS = 2
"""A click and its "no box" token, or the two corners of a box."""


class OpenVinoStages:
    """OpenVINO on a CPU, in single precision.

    A chunk is of one image, so that its first layer is shared without a copy.  Two prompts
    together take less time each than one alone; more only take more memory.
    """

    chunk = 2
    mixes_images = False

    def __init__(
        self, decoder: MaskDecoder, image_pe: Tensor, threads: int, graphs: Graphs
    ) -> None:
        """Compile.

        Args:
            decoder, image_pe: as `ProjectImage` takes them; on the CPU.
            threads: CPU threads to use.
            graphs: where traced graphs are kept.
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

        self._project = _Compiled(
            graphs.get(
                ProjectImage,
                lambda: ProjectImage(decoder, image_pe),
                [tuple(image_pe.shape)],
                [()],
            ),
            threads,
        )
        self._attend = _Compiled(
            graphs.get(
                TwoWay,
                lambda: TwoWay(decoder, image_pe),
                prompts(self.chunk),
                [(), (), (), (), (0, 1), (0, 1)],
            ),
            threads,
        )
        self._upscale = _Compiled(
            graphs.get(Upscale, lambda: Upscale(decoder), finished(self.chunk), [(0,), (0,)]),
            threads,
        )
        for count in (1, self.chunk):
            self._attend.specialise(prompts(count))
            self._upscale.specialise(finished(count))

    def project(self, dense: Tensor) -> ImageSide:
        return ImageSide(*(tensor.clone() for tensor in self._project(dense)))

    def attend(self, side: ImageSide, prompts: Tensor, padding: Tensor) -> Attended:
        iou, weights, keys = self._attend(*side, prompts, padding)
        return iou, weights, keys

    def upscale(self, keys: Tensor, weights: Tensor) -> Tensor:
        return self._upscale(keys, weights)[0]


class _Compiled:
    """A graph compiled for all shapes, and for some in particular, which is quicker."""

    def __init__(self, model: openvino.Model, threads: int) -> None:
        self._model = model
        self._options = cpu_options(threads)
        self._special: dict[tuple[tuple[int, ...], ...], openvino.CompiledModel] = {}
        self._general = core().compile_model(model, "CPU", self._options)
        # A request owns the memory of its answer: each thread has its own.
        self._local = threading.local()

    def specialise(self, shapes: Sequence[tuple[int, ...]]) -> None:
        """Compile for exactly these shapes of the inputs too."""
        model = self._model.clone()
        model.reshape({i: list(shape) for i, shape in enumerate(shapes)})
        self._special[tuple(shapes)] = core().compile_model(model, "CPU", self._options)

    def __call__(self, *tensors: Tensor) -> list[Tensor]:
        """Run it; the answer is overwritten by the same thread's next call."""
        compiled = self._special.get(tuple(tuple(t.shape) for t in tensors), self._general)
        requests: dict[openvino.CompiledModel, openvino.InferRequest]
        requests = self._local.__dict__.setdefault("requests", {})
        request = requests.get(compiled)
        if request is None:
            request = requests[compiled] = compiled.create_infer_request()
        arrays = [tensor.contiguous().numpy() for tensor in tensors]
        outputs = request.infer(arrays, share_inputs=True, share_outputs=True)
        return [as_tensor(outputs[i]) for i in range(len(outputs))]
