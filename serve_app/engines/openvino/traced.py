"""Torch modules as OpenVINO graphs, traced once per host and saved to disk.

Tracing takes seconds and hundreds of megabytes; a saved graph is mapped into memory in
milliseconds.  It is saved under a hash of all that it depends on: weights, code, versions.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import openvino
import torch
from torch import nn

from serve_app.engines.openvino.runtime import graph_name, load_or_build_graph

_TRACED_BY = ("torch", "segment-anything")

Shape = tuple[int, ...]


class Graphs:
    """Graphs of one model.

    Args:
        folder: where they are saved; None, or one that cannot be written: traced at each start.
        weights: hash of the model's weights.
    """

    def __init__(self, folder: Path | None, weights: str) -> None:
        self._folder = folder
        self._weights = weights

    def get(
        self,
        kind: type[nn.Module],
        build: Callable[[], nn.Module],
        shapes: Sequence[Shape],
        free: Sequence[Shape],
    ) -> openvino.Model:
        """Convert a module to a graph, or read the saved one.

        Args:
            kind: the module's class; its source file must contain all of its code.
            build: builds the module; its inputs are float32 tensors.
            shapes: example shapes of the inputs.
            free: the axes of variable length, for each input.
        """
        if self._folder is None:
            return _trace(build(), shapes, free)
        parts = [self._weights, kind.__qualname__, repr((shapes, free))]
        name = graph_name(parts, Path(inspect.getfile(kind)), _TRACED_BY)
        return load_or_build_graph(self._folder / name, lambda: _trace(build(), shapes, free))


def _trace(module: nn.Module, shapes: Sequence[Shape], free: Sequence[Shape]) -> openvino.Model:
    with torch.no_grad(), warnings.catch_warnings():
        # torch announces that tracing is deprecated; the conversion is OpenVINO's.
        warnings.simplefilter("ignore", FutureWarning)
        example = tuple(torch.zeros(shape) for shape in shapes)
        model = openvino.convert_model(module.eval(), example_input=example)
    lengths = [list(shape) for shape in shapes]
    for shape, axes in zip(lengths, free, strict=True):
        for axis in axes:
            shape[axis] = -1
    model.reshape(dict(enumerate(map(openvino.PartialShape, lengths))))
    return model
