"""Torch modules as OpenVINO graphs, traced once a host and kept.

Tracing takes seconds and hundreds of megabytes; a kept graph is mapped into memory in
milliseconds.  A graph is kept under a hash of all that it depends on: weights, code, versions.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import openvino
import torch
from torch import nn

from serve_app.engines.openvino.runtime import graph_name, kept_graph

_TRACED_BY = ("torch", "segment-anything")

Shape = tuple[int, ...]


class Graphs:
    """Graphs of one model.

    Args:
        folder: where they are kept; None, or one that cannot be written: made anew each time.
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
        """A module as a graph, traced if it was not before.

        Args:
            kind: the module's class, whose source file holds all of its code.
            build: makes it; it takes float32 tensors.
            shapes: of the inputs, as they may occur.
            free: of each input the axes whose length varies.
        """
        if self._folder is None:
            return _trace(build(), shapes, free)
        parts = [self._weights, kind.__qualname__, repr((shapes, free))]
        name = graph_name(parts, Path(inspect.getfile(kind)), _TRACED_BY)
        return kept_graph(self._folder / name, lambda: _trace(build(), shapes, free))


def _trace(module: nn.Module, shapes: Sequence[Shape], free: Sequence[Shape]) -> openvino.Model:
    with torch.no_grad(), warnings.catch_warnings():
        # The conversion traces; that torch would like it done otherwise is not for its caller.
        warnings.simplefilter("ignore", FutureWarning)
        example = tuple(torch.zeros(shape) for shape in shapes)
        model = openvino.convert_model(module.eval(), example_input=example)
    lengths = [list(shape) for shape in shapes]
    for shape, axes in zip(lengths, free, strict=True):
        for axis in axes:
            shape[axis] = -1
    model.reshape(dict(enumerate(map(openvino.PartialShape, lengths))))
    return model
