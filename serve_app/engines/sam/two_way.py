"""SAM's mask decoder for prompts of different lengths in one pass, as three modules.

The arithmetic is that of `segment_anything`'s ``MaskDecoder`` and ``TwoWayTransformer``
(Kirillov et al. 2023), regrouped without approximation:

* Before the first image-to-token attention the image side does not depend on the prompt: its
  projections are computed once per image (`ProjectImage`).
* A prompt has about eight tokens and the image 4,096 positions, so token vectors are projected
  through the image-side weights rather than positions: ``q (K W)^T = (q W^T) K^T``.  A bias of
  ``k`` shifts all scores of a row alike and cancels in the softmax; a bias of ``v`` passes
  through it unchanged, since its rows sum to one.
* Scores of both directions lie as ``(tokens, positions)``: the softmax over a handful of tokens
  then runs along whole rows of positions.
* Transposed convolutions with kernel 2 and stride 2 are products over positions; pixels are
  shuffled once, on the finished masks, and only masks that are returned are upscaled.

Prompts are padded to the longest; padding is masked out of every softmax over tokens, so each
result equals that of the prompt alone.

Shapes: I images, B prompts, T tokens, N = 4,096 positions, C = 256 channels, H = 8 heads of
D = 16.  The modules are plain tensor programs: `TorchStages` runs them, other engines trace them.
"""

from __future__ import annotations

from typing import Any, NamedTuple, cast

import torch
from segment_anything.modeling import MaskDecoder
from segment_anything.modeling.transformer import Attention, TwoWayAttentionBlock
from torch import Tensor, nn
from torch.nn import functional as F

GRID = 64
"""Side of the image embedding, in cells."""

Attended = tuple[Tensor, Tensor, Tensor]
"""Predicted IoU, mask weights and image positions, as `TwoWay` returns them."""

MASKS = 3
"""Masks upscaled per prompt, always three: it costs little more, and one shape is compiled."""


class ImageSide(NamedTuple):
    """Inputs of the first layer that depend on the image only, not on the prompt.

    Attributes:
        keys: ``(I, N, C)``, the embedding plus the dense prompt.
        k, v: ``(I, H, N, D)``, for tokens that attend to the image.
        q: ``(I, H, N, D)``, for the image that attends to tokens.
    """

    keys: Tensor
    k: Tensor
    v: Tensor
    q: Tensor


class _Cross(nn.Module):
    """One cross attention, its weights cut into heads."""

    def __init__(self, attention: Attention) -> None:
        super().__init__()
        self.heads = attention.num_heads
        self.dim = attention.internal_dim // attention.num_heads
        self.scale = self.dim**-0.5
        self.inner: Any = attention
        self.q_weight, self.k_weight, self.v_weight = (
            nn.Buffer(projection.weight.view(self.heads, self.dim, -1))
            for projection in (attention.q_proj, attention.k_proj, attention.v_proj)
        )
        self.q_bias = nn.Buffer(attention.q_proj.bias.view(self.heads, 1, self.dim))
        out = attention.out_proj.weight.view(-1, self.heads, self.dim)
        self.out_weight = nn.Buffer(out.permute(1, 2, 0).contiguous())

    def split(self, x: Tensor) -> Tensor:
        """``(B, n, H * D)`` to ``(B, H, n, D)``."""
        return x.view(x.shape[0], x.shape[1], self.heads, self.dim).transpose(1, 2)

    def join(self, x: Tensor) -> Tensor:
        """``(B, H, T, D)`` to the output ``(B, T, C)``."""
        return self.inner.out_proj(x.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]

    def tokens_attend(self, tokens: Tensor, keys_pe: Tensor, keys: Tensor) -> Tensor:
        """``(B, T, C)`` tokens attend to ``(B, N, C)`` positions; returns ``(B, T, C)``."""
        batch, length, channels = tokens.shape
        q = self.split(self.inner.q_proj(tokens)) * self.scale
        q_image = torch.matmul(q, self.k_weight).view(batch, -1, channels)
        attention = torch.softmax(q_image @ keys_pe.transpose(1, 2), dim=-1)
        context = (attention @ keys).view(batch, self.heads, length, channels)
        out = torch.matmul(context, self.v_weight.transpose(1, 2))
        bias = self.inner.v_proj.bias.view(self.heads, 1, self.dim)
        return self.join(out + bias)

    def tokens_attend_shared(self, tokens: Tensor, side: ImageSide) -> Tensor:
        """As `tokens_attend`, for the first layer."""
        q = self.split(self.inner.q_proj(tokens)) * self.scale
        scores = _fold(q, side.k.shape[0]) @ side.k.transpose(2, 3)
        out = torch.softmax(scores, dim=-1) @ side.v
        return self.join(_unfold(out, q))

    def image_attends(
        self, keys_pe: Tensor, tokens_pe: Tensor, tokens: Tensor, padding: Tensor
    ) -> Tensor:
        """``(B, N, C)`` positions attend to ``(B, T, C)`` tokens; returns ``(B, N, C)``."""
        batch, length, channels = tokens.shape
        k = self.split(self.inner.k_proj(tokens_pe)) * self.scale
        k_image = torch.matmul(k, self.q_weight).view(batch, -1, channels)
        scores = (k_image @ keys_pe.transpose(1, 2)).view(batch, self.heads, length, -1)
        return self._spread(scores + (k * self.q_bias).sum(-1, keepdim=True), tokens, padding)

    def image_attends_shared(
        self, side: ImageSide, tokens_pe: Tensor, tokens: Tensor, padding: Tensor
    ) -> Tensor:
        """As `image_attends`, for the first layer."""
        k = self.split(self.inner.k_proj(tokens_pe)) * self.scale
        scores = _fold(k, side.q.shape[0]) @ side.q.transpose(2, 3)
        return self._spread(_unfold(scores, k), tokens, padding)

    def _spread(self, scores: Tensor, tokens: Tensor, padding: Tensor) -> Tensor:
        """Scores ``(B, H, T, N)`` to the output: softmax over tokens, values, projection."""
        batch, _, _, positions = scores.shape
        attention = torch.softmax(scores + padding[:, None, :, None], dim=2)
        v = self.split(self.inner.v_proj(tokens))
        v_out = torch.matmul(v, self.out_weight).view(batch, -1, self.out_weight.shape[-1])
        spread: Tensor = attention.reshape(batch, -1, positions).transpose(1, 2) @ v_out
        bias: Tensor = self.inner.out_proj.bias
        return spread + bias


def _fold(x: Tensor, images: int) -> Tensor:
    """``(B, H, T, D)``, equally many prompts per image, to ``(I, H, B / I * T, D)``."""
    batch, heads, length, dim = x.shape
    x = x.view(images, batch // images, heads, length, dim).transpose(1, 2)
    return x.reshape(images, heads, batch // images * length, dim)


def _unfold(x: Tensor, like: Tensor) -> Tensor:
    """Back from `_fold`: ``(I, H, B / I * T, n)`` to ``(B, H, T, n)``."""
    batch, heads, length, _ = like.shape
    x = x.view(x.shape[0], heads, batch // x.shape[0], length, x.shape[-1]).transpose(1, 2)
    return x.reshape(batch, heads, length, x.shape[-1])


def _self_attend(block: TwoWayAttentionBlock, x: Tensor, v: Tensor, padding: Tensor) -> Tensor:
    """Attention among ``(B, T, C)`` tokens, without padding."""
    module = block.self_attn
    batch, length, _ = x.shape
    q, k, value = (
        projection(t).view(batch, length, module.num_heads, -1).transpose(1, 2)
        for projection, t in ((module.q_proj, x), (module.k_proj, x), (module.v_proj, v))
    )
    scores = q @ k.transpose(2, 3) * q.shape[-1] ** -0.5 + padding[:, None, None]
    out = torch.softmax(scores, dim=-1) @ value
    return module.out_proj(out.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]


class ProjectImage(nn.Module):
    """``(I, C, 64, 64)`` embedding plus dense prompt to an `ImageSide`; once per image."""

    def __init__(self, decoder: MaskDecoder, image_pe: Tensor) -> None:
        """Wrap a decoder's weights.

        Args:
            decoder: on its device and in its dtype already.
            image_pe: ``(1, C, 64, 64)``, the prompt encoder's dense positional encoding.
        """
        super().__init__()
        block = decoder.transformer.layers[0]
        self.to_image = _Cross(block.cross_attn_token_to_image)
        self.to_tokens = _Cross(block.cross_attn_image_to_token)
        self.pe = nn.Buffer(_positions(image_pe))

    def forward(self, dense: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        keys = _positions(dense)
        keys_pe = keys + self.pe
        k = self.to_image.split(self.to_image.inner.k_proj(keys_pe)).contiguous()
        v = self.to_image.split(self.to_image.inner.v_proj(keys)).contiguous()
        q = self.to_tokens.split(self.to_tokens.inner.q_proj(keys_pe)).contiguous()
        return keys, k, v, q


def _positions(grid: Tensor) -> Tensor:
    """``(I, C, 64, 64)`` to ``(I, N, C)``."""
    return grid.flatten(2).transpose(1, 2).contiguous()


class TwoWay(nn.Module):
    """The two-way transformer, and the heads that read its tokens."""

    def __init__(self, decoder: MaskDecoder, image_pe: Tensor) -> None:
        """As `ProjectImage`."""
        super().__init__()
        self.transformer: Any = decoder.transformer
        self.iou_head: Any = decoder.iou_prediction_head
        self.hypernetworks = decoder.output_hypernetworks_mlps
        layers = decoder.transformer.layers
        self.to_image: Any = nn.ModuleList(_Cross(b.cross_attn_token_to_image) for b in layers)
        self.to_tokens: Any = nn.ModuleList(_Cross(b.cross_attn_image_to_token) for b in layers)
        self.final = _Cross(decoder.transformer.final_attn_token_to_image)
        self.pe = nn.Buffer(_positions(image_pe))
        self.outputs = nn.Buffer(torch.cat([decoder.iou_token.weight, decoder.mask_tokens.weight]))

    def forward(
        self, keys: Tensor, k: Tensor, v: Tensor, q: Tensor, prompts: Tensor, padding: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Run it.

        Args:
            keys, k, v, q: an `ImageSide` of one image, or of each prompt's.
            prompts: ``(B, P, C)`` padded prompt tokens.
            padding: ``(B, P)``, 0 for tokens and minus infinity for padding.

        Returns:
            ``(B, 4)`` predicted IoU, ``(B, 4, C / 8)`` mask weights (the single mask first,
            then the three of multimask), and the image seen by each prompt, ``(B, N, C)``.
        """
        side = ImageSide(keys, k, v, q)
        outputs = self.outputs.expand(prompts.shape[0], -1, -1)
        pe = torch.cat([outputs, prompts], dim=1)
        padding = F.pad(padding, (self.outputs.shape[0], 0))

        block = self.transformer.layers[0]
        x = block.norm1(_self_attend(block, pe, pe, padding))
        x = block.norm2(x + self.to_image[0].tokens_attend_shared(x + pe, side))
        x = block.norm3(x + block.mlp(x))
        spread = self.to_tokens[0].image_attends_shared(side, x + pe, x, padding)
        keys = block.norm4(keys + spread)
        for i in range(1, len(self.to_image)):
            block = self.transformer.layers[i]
            x = block.norm1(x + _self_attend(block, x + pe, x, padding))
            keys_pe = keys + self.pe
            x = block.norm2(x + self.to_image[i].tokens_attend(x + pe, keys_pe, keys))
            x = block.norm3(x + block.mlp(x))
            spread = self.to_tokens[i].image_attends(keys_pe, x + pe, x, padding)
            keys = block.norm4(keys + spread)
        attended = self.final.tokens_attend(x + pe, keys + self.pe, keys)
        x = self.transformer.norm_final_attn(x + attended)

        heads = enumerate(self.hypernetworks)
        weights = torch.stack([head(x[:, 1 + i]) for i, head in heads], dim=1)
        return self.iou_head(x[:, 0]), weights, keys


class Upscale(nn.Module):
    """Finished image positions and mask weights to low-resolution logits."""

    def __init__(self, decoder: MaskDecoder) -> None:
        """As `ProjectImage`."""
        super().__init__()
        first, norm, _, second, _ = decoder.output_upscaling
        self.norm: Any = norm
        self.first, self.second = (
            nn.Buffer(c.weight.permute(0, 2, 3, 1).flatten(1).contiguous()) for c in (first, second)
        )
        self.first_bias = nn.Buffer(first.bias.repeat(4))
        self.second_bias = nn.Buffer(second.bias.repeat(4))

    def forward(self, keys: Tensor, weights: Tensor) -> Tensor:
        """Upscale and weigh.

        A transposed convolution with kernel and stride 2 gives each position its own 2 x 2 outputs,
        so it is a matrix product.

        Args:
            keys: ``(B, N, C)`` from `TwoWay`.
            weights: ``(B, M, C / 8)``, the chosen masks' rows.

        Returns:
            ``(B, M, 256, 256)`` low-resolution logits.
        """
        batch, wanted, depth = weights.shape
        channels = self.norm.weight.shape[0]
        x = (keys @ self.first + self.first_bias).view(batch, -1, channels)
        x = F.gelu(F.layer_norm(x, (channels,), self.norm.weight, self.norm.bias, self.norm.eps))
        x = F.gelu(x @ self.second + self.second_bias).view(batch, -1, depth)
        logits = weights @ x.transpose(1, 2)
        # (row, column) of the grid, then (row, column) inside each of the two upscalings.
        logits = logits.view(batch, wanted, GRID, GRID, 2, 2, 2, 2)
        logits = logits.permute(0, 1, 2, 4, 6, 3, 5, 7)
        return logits.reshape(batch, wanted, GRID * 4, GRID * 4)


class TorchStages:
    """The three modules run by eager torch, on any device.

    On CPUs `serve_app.engines.sam.stages_openvino` is faster.

    On a GPU a chunk has many prompts, of any images.  On a CPU it has one: a second prompt's
    activations (4 MiB each) would evict the first one's from the CPU cache.

    Attributes:
        chunk: the most efficient number of prompts in one pass.
        mixes_images: prompts of different images may share a chunk.
    """

    def __init__(self, decoder: MaskDecoder, image_pe: Tensor) -> None:
        self.mixes_images = image_pe.device.type == "cuda"
        self.chunk = 64 if self.mixes_images else 1
        self._project = ProjectImage(decoder, image_pe)
        self._attend = TwoWay(decoder, image_pe)
        self._upscale = Upscale(decoder)

    def project(self, dense: Tensor) -> ImageSide:
        """As `ProjectImage`."""
        return ImageSide(*self._project(dense))

    def attend(self, side: ImageSide, prompts: Tensor, padding: Tensor) -> Attended:
        """As `TwoWay`; the result is valid until the same thread's next call."""
        return cast(Attended, self._attend(*side, prompts, padding))

    def upscale(self, keys: Tensor, weights: Tensor) -> Tensor:
        """As `Upscale`, of `MASKS` masks each; valid until the same thread's next call."""
        return cast(Tensor, self._upscale(keys, weights))
