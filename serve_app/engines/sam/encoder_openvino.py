"""SAM's image encoder as an `EncoderEngine` on a CPU, run by OpenVINO.

MobileSAM's graph is built from its weights: TinyViT-5M (Wu et al. 2022) at stride 16 with SAM's
neck, as `TinyVitEncoder` in `serve_app.engines.sam.model`.  It is built node by node, not converted
from PyTorch: conversion takes a minute and keeps redundant operations.  These changes are exact up
to rounding:

- Batch norms are folded into the convolutions, LayerNorms' scales and shifts and the attention's
  scale into the linear layer behind them.
- Windows that extend beyond the border are padded after the projection to queries, keys and values,
  not before, and cropped before the output projection: a fifth of that work was on padding.  In
  the original a padded token is zero before its LayerNorm, so its key and value are the layer's
  constant part.  A constant in all keys changes no softmax; one in all values is added
  to the output unchanged, since attention weights sum to one.  So the first is dropped, the second
  is added to the output's bias, and a padded token's key and value are then zero.
- One transposition splits windows and heads, and one merges them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from serve_app.core.inference import Embedding
from serve_app.core.settings import Compute
from serve_app.core.types import Float32Array, RgbArray
from serve_app.engines.openvino import op, ov
from serve_app.engines.openvino.runtime import (
    Network,
    graph_name,
    load_or_build_graph,
    precision_of,
)
from serve_app.engines.sam.frame import IMAGE_SIZE, model_input

Node = Any  # openvino has no type annotations for nodes and outputs

_NORM_EPS = 1e-5
_NECK_EPS = 1e-6


class _Stage(NamedTuple):
    """A stage of windowed attention: side of its grid, blocks, heads, side of a window."""

    side: int
    depth: int
    heads: int
    window: int


_STAGES = {1: _Stage(128, 2, 4, 7), 2: _Stage(64, 6, 5, 14), 3: _Stage(64, 2, 10, 7)}


class OpenVinoEncoder:
    """Embeds images one by one: the graph takes one image, which uses all cores of a CPU.

    The embedding's only tensor is ``image_embed (256, 64, 64) float32``.

    Args:
        graph: from ``(1, 3, 1024, 1024)`` to ``(256, 64, 64)``, or the path of a saved one.
        compute: threads, and the precision of the floating-point parts of the graph.
    """

    def __init__(self, graph: ov.Model | Path, compute: Compute) -> None:
        self._network = Network(graph, compute.threads, precision_of(compute))

    def encode_batch(self, images: Sequence[RgbArray]) -> list[Embedding]:
        """Embed upright ``(H, W, 3) uint8`` images of any sizes."""
        return [self._encode(image) for image in images]

    def _encode(self, image: RgbArray) -> Embedding:
        features = self._network(model_input(image, "pad"))[0]
        return Embedding({"image_embed": features}, image.shape[0], image.shape[1])


def load_or_build_tiny_vit(checkpoint: Path, weights_hash: str, folder: Path) -> ov.Model:
    """As `tiny_vit_from`, but saved in a folder: later starts do not load torch."""
    name = graph_name(["tiny_vit", weights_hash], Path(__file__), ())
    return load_or_build_graph(folder / name, lambda: tiny_vit_from(checkpoint))


def tiny_vit_from(checkpoint: Path) -> ov.Model:
    """MobileSAM's encoder with the weights of a verified checkpoint, for one image.

    From ``image (1, 3, 1024, 1024)`` to ``image_embed (256, 64, 64)``.
    """
    from serve_app.engines.sam.checkpoint import ENCODER_PREFIX, read_checkpoint

    weights = {
        name.removeprefix(ENCODER_PREFIX): tensor.float().numpy()
        for name, tensor in read_checkpoint("vit_t", checkpoint).items()
        if name.startswith(ENCODER_PREFIX)
    }
    return _TinyVit(weights).graph()


class _TinyVit:
    """Builds the graph from float32 arrays by the names of `TinyVitEncoder`'s parameters."""

    def __init__(self, weights: Mapping[str, Float32Array]) -> None:
        self._weights = weights

    def graph(self) -> ov.Model:
        image = op.parameter([1, 3, IMAGE_SIZE, IMAGE_SIZE], np.float32, name="image")
        x = self._conv("backbone.patch_embed.conv1", image, stride=2)
        x = self._conv("backbone.patch_embed.conv2", _gelu(x), stride=2)
        for block in range(2):
            x = self._mbconv(f"backbone.stages.0.blocks.{block}", x)
        for number, stage in _STAGES.items():
            x = self._merging(f"backbone.stages.{number}.downsample", x, 2 if number < 3 else 1)
            tokens = _as_tokens(x)
            for block in range(stage.depth):
                tokens = self._block(f"backbone.stages.{number}.blocks.{block}", tokens, stage)
            x = _as_image(tokens, stage.side)
        x = self._neck_norm("neck.1", self._neck_conv("neck.0", x, 0))
        x = self._neck_norm("neck.3", self._neck_conv("neck.2", x, 1))
        # Without the batch's axis: what a caller copies is then the embedding itself.
        result = op.result(op.squeeze(x, [0]), name="image_embed")
        result.get_output_tensor(0).set_names({"image_embed"})
        image.get_output_tensor(0).set_names({"image"})
        return ov.Model([result], [image], "tiny_vit")

    def _conv(self, name: str, x: Node, stride: int = 1) -> Node:
        """A convolution with its batch norm folded in; depthwise where the weights are."""
        w = self._weights
        scale = w[f"{name}.bn.weight"] / np.sqrt(w[f"{name}.bn.running_var"] + _NORM_EPS)
        kernel = w[f"{name}.conv.weight"] * scale[:, None, None, None]
        shift = w[f"{name}.bn.bias"] - w[f"{name}.bn.running_mean"] * scale
        pad = [kernel.shape[-1] // 2] * 2
        arguments: tuple[Any, ...] = ([stride] * 2, pad, pad, [1, 1])
        if kernel.shape[1] == 1 and kernel.shape[0] > 1:
            y = op.group_convolution(x, _constant(kernel[:, None]), *arguments)
        else:
            y = op.convolution(x, _constant(kernel), *arguments)
        return op.add(y, _constant(shift.reshape(1, -1, 1, 1)))

    def _mbconv(self, name: str, x: Node) -> Node:
        y = _gelu(self._conv(f"{name}.conv1", x))
        y = _gelu(self._conv(f"{name}.conv2", y))
        return _gelu(op.add(self._conv(f"{name}.conv3", y), x))

    def _merging(self, name: str, x: Node, stride: int) -> Node:
        x = _gelu(self._conv(f"{name}.conv1", x))
        x = _gelu(self._conv(f"{name}.conv2", x, stride))
        return self._conv(f"{name}.conv3", x)

    def _block(self, name: str, x: Node, stage: _Stage) -> Node:
        """Attention in windows, a local convolution, an MLP; ``(1, side * side, C)``."""
        x = op.add(x, self._attention(f"{name}.attn", x, stage))
        x = _as_tokens(self._conv(f"{name}.local_conv", _as_image(x, stage.side)))
        w = self._weights
        fc1, bias1 = _behind_norm(
            w[f"{name}.mlp.norm.weight"], w[f"{name}.mlp.norm.bias"],
            w[f"{name}.mlp.fc1.weight"], w[f"{name}.mlp.fc1.bias"],
        )  # fmt: skip
        y = _gelu(_linear(_normalised(x, _NORM_EPS), fc1, bias1))
        return op.add(x, _linear(y, w[f"{name}.mlp.fc2.weight"], w[f"{name}.mlp.fc2.bias"]))

    def _attention(self, name: str, x: Node, stage: _Stage) -> Node:
        w = self._weights
        weight, constant = _behind_norm(
            w[f"{name}.norm.weight"], w[f"{name}.norm.bias"],
            w[f"{name}.qkv.weight"], w[f"{name}.qkv.bias"],
        )  # fmt: skip
        heads, window, channels = stage.heads, stage.window, weight.shape[1]
        width = channels // heads
        # Rows are ordered by head, then query, key, value; here by query, key, value first.
        weight = weight.reshape(heads, 3, width, channels).swapaxes(0, 1).copy()
        constant = constant.reshape(heads, 3, width).swapaxes(0, 1).copy()
        weight[0] *= width**-0.5
        constant[0] *= width**-0.5
        output = w[f"{name}.proj.weight"]
        bias = w[f"{name}.proj.bias"] + output @ constant[2].reshape(-1)
        constant[1:] = 0
        y = _normalised(x, _NORM_EPS)
        y = _linear(y, weight.reshape(-1, channels), constant.reshape(-1))

        count = -(-stage.side // window)
        padded = count * window
        y = op.reshape(y, [1, stage.side, stage.side, 3 * channels], False)
        y = op.pad(y, [0] * 4, [0, padded - stage.side, padded - stage.side, 0], "constant", 0.0)
        y = op.reshape(y, [count, window, count, window, 3, heads, width], False)
        y = op.reshape(
            op.transpose(y, [4, 0, 2, 5, 1, 3, 6]),
            [3, count * count, heads, window * window, width],
            False,
        )
        q, k, v = (op.squeeze(part, [0]) for part in op.split(y, 0, 3).outputs())
        scores = op.add(op.matmul(q, k, False, True), self._position_bias(name, stage))
        y = op.matmul(op.softmax(scores, 3), v, False, False)
        y = op.reshape(y, [count, count, heads, window, window, width], False)
        y = op.transpose(y, [0, 3, 1, 4, 2, 5])
        y = op.reshape(y, [1, padded, padded, channels], False)
        y = op.slice(y, [0, 0], [stage.side, stage.side], [1, 1], [1, 2])
        y = op.reshape(y, [1, stage.side * stage.side, channels], False)
        return _linear(y, output, bias)

    def _position_bias(self, name: str, stage: _Stage) -> Node:
        """One learned number for each head and distance ``(|dy|, |dx|)`` of two tokens."""
        side = stage.window
        y, x = np.divmod(np.arange(side * side), side)
        distance = np.abs(y[:, None] - y) * side + np.abs(x[:, None] - x)
        biases = self._weights[f"{name}.attention_biases"]
        return _constant(biases[None, :, distance])

    def _neck_conv(self, name: str, x: Node, pad: int) -> Node:
        kernel = self._weights[f"{name}.weight"]
        return op.convolution(x, _constant(kernel), [1, 1], [pad] * 2, [pad] * 2, [1, 1])

    def _neck_norm(self, name: str, x: Node) -> Node:
        """A LayerNorm over the channels of ``(1, C, 64, 64)``."""
        scale, shift = (self._weights[f"{name}.{part}"] for part in ("weight", "bias"))
        y = _normalised(_as_tokens(x), _NECK_EPS)
        return _as_image(op.add(op.multiply(y, _constant(scale)), _constant(shift)), 64)


def _constant(values: NDArray[Any]) -> Node:
    return op.constant(np.ascontiguousarray(values, np.float32))


def _as_tokens(x: Node) -> Node:
    """``(1, C, side, side)`` to ``(1, side * side, C)``.

    In three axes: of four OpenVINO takes the second for channels and reorders around it.
    """
    return op.reshape(op.transpose(x, [0, 2, 3, 1]), [1, -1, x.get_output_shape(0)[1]], False)


def _as_image(tokens: Node, side: int) -> Node:
    channels = tokens.get_output_shape(0)[2]
    return op.transpose(op.reshape(tokens, [1, side, side, channels], False), [0, 3, 1, 2])


def _gelu(x: Node) -> Node:
    return op.gelu(x, "erf")


def _normalised(x: Node, epsilon: float) -> Node:
    """Mean 0 and deviation 1 over the last axis."""
    return op.mvn(x, [-1], True, epsilon, "INSIDE_SQRT")


def _linear(x: Node, weight: Float32Array, bias: Float32Array) -> Node:
    return op.add(op.matmul(x, _constant(weight), False, True), _constant(bias))


def _behind_norm(
    scale: Float32Array, shift: Float32Array, weight: Float32Array, bias: Float32Array
) -> tuple[Float32Array, Float32Array]:
    """A linear layer with the scale and shift of the LayerNorm before it folded in."""
    return weight * scale, bias + weight @ shift
