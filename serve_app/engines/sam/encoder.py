"""SAM's image encoder as an `EncoderEngine` run by PyTorch."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from segment_anything.modeling import Sam
from torch import Tensor

from serve_app.core.inference import Embedding
from serve_app.core.settings import Compute
from serve_app.core.types import RgbArray
from serve_app.engines.devices import torch_dtype, use_threads
from serve_app.engines.sam.frame import model_input

Run = Callable[[Tensor], Tensor]


class SamEncoder:
    """Embeds batches of images with any of SAM's encoders (`serve_app.engines.sam.model`).

    The embedding's only tensor is ``image_embed (256, 64, 64)``: float32 on a CPU, float16 from
    a GPU in half precision (bfloat16 has no numpy type).

    Args:
        sam: the model that contains the encoder.
        compute: device, dtype, threads.
        compiled: use ``torch.compile``, which needs a C++ compiler (on GPUs Triton); the first
            pass of each of `batch_sizes` takes up to minutes.  On GPUs each becomes a CUDA graph.
    """

    def __init__(self, sam: Sam, compute: Compute, compiled: bool = False) -> None:
        self._device = torch.device(compute.device)
        self._dtype = torch_dtype(compute.dtype)
        self._threads = compute.threads
        self._compiled = compiled
        # Convolutions are fastest in channels-last format, on CPUs and GPUs.
        encoder = sam.image_encoder.to(self._device, self._dtype, memory_format=torch.channels_last)
        self._run: Run = compiled_pass(encoder, self._device) if compiled else encoder

    @torch.inference_mode()
    def encode_batch(self, images: Sequence[RgbArray]) -> list[Embedding]:
        """Embed upright ``(H, W, 3) uint8`` images of any sizes in one pass."""
        use_threads(self._threads)
        inputs = torch.from_numpy(np.concatenate([model_input(image, "pad") for image in images]))
        if self._compiled:
            # Pad to the next compiled batch size; the padding is removed below.
            padded = inputs.new_zeros((batch_sizes(len(images))[-1], *inputs.shape[1:]))
            padded[: len(images)] = inputs
            inputs = padded
        inputs = inputs.to(self._device, self._dtype, memory_format=torch.channels_last)
        features = self._run(inputs)[: len(images)]
        if self._dtype is not torch.float32:
            features = features.to(torch.float16)
        # Copies: a view would keep the whole batch in memory while one image of it is cached.
        return [
            Embedding({"image_embed": array.copy()}, height=image.shape[0], width=image.shape[1])
            for array, image in zip(features.cpu().numpy(), images, strict=True)
        ]


def batch_sizes(most: int) -> tuple[int, ...]:
    """The batch sizes that are compiled for batches of up to ``most``: powers of two."""
    return tuple(2**n for n in range((most - 1).bit_length() + 1))


def compiled_pass(encoder: torch.nn.Module, device: torch.device) -> Run:
    """Compile the encoder with `torch.compile`; on GPUs with a CUDA graph per batch size."""
    if device.type == "cpu":
        return torch.compile(encoder, dynamic=False, options={"freezing": True})
    # Not torch's own graphs: only the thread that captured them may replay them, and a replica
    # warms up in another thread than the one that runs its passes.
    tuned = torch.compile(encoder, dynamic=False, mode="max-autotune-no-cudagraphs")
    return _Graphs(tuned)


class _Graphs:
    """A module as CUDA graphs, one for each batch size."""

    def __init__(self, module: Run) -> None:
        self._module = module
        self._captured: dict[int, tuple[torch.cuda.CUDAGraph, Tensor, Tensor]] = {}
        self._lock = threading.Lock()

    def __call__(self, x: Tensor) -> Tensor:
        # A graph has fixed input and output buffers: one call at a time.
        with self._lock:
            if len(x) not in self._captured:
                self._captured[len(x)] = self._capture(x)
            graph, inputs, outputs = self._captured[len(x)]
            inputs.copy_(x)
            graph.replay()
            return outputs.clone()

    def _capture(self, x: Tensor) -> tuple[torch.cuda.CUDAGraph, Tensor, Tensor]:
        """A graph for this batch size, and the buffers of its input and output."""
        inputs = x.clone(memory_format=torch.channels_last)
        side: Any = torch.cuda.Stream(x.device)  # type: ignore[no-untyped-call]
        side.wait_stream(torch.cuda.current_stream(x.device))
        with torch.cuda.stream(side):
            for _ in range(3):  # compiles and tunes kernels, which must not be captured
                self._module(inputs)
        torch.cuda.current_stream(x.device).wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            outputs = self._module(inputs)
        return graph, inputs, outputs
