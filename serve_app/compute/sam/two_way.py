"""SAM's mask decoder for prompts of different images and lengths in one pass.

The arithmetic is that of `segment_anything`'s ``MaskDecoder`` and ``TwoWayTransformer``
(Kirillov et al. 2023), regrouped without approximation:

* Before the first image-to-token attention the image side does not depend on the prompt: its
  projections are computed once an image (`ImageSide`).
* A prompt has about eight tokens and the image 4,096 positions, so token vectors are projected
  through the image-side weights rather than positions: ``q (K W)^T = (q W^T) K^T``.  A bias of
  ``k`` shifts all scores of a row alike and cancels in the softmax; a bias of ``v`` passes
  through it unchanged, since its rows sum to one.
* Transposed convolutions with kernel 2 and stride 2 are products over positions; pixels are
  shuffled once, on the finished masks, and only masks that are returned are upscaled.

Prompts are padded to the longest; padding is masked out of every softmax over tokens, so each
answer equals that of the prompt alone.

Shapes: B prompts, T tokens, N = 4,096 positions, C = 256 channels, H = 8 heads of D = 16.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from segment_anything.modeling import MaskDecoder
from segment_anything.modeling.transformer import Attention, TwoWayAttentionBlock
from torch import Tensor
from torch.nn import functional as F

GRID = 64
"""Side of the image embedding, in cells."""


@dataclass(frozen=True, slots=True)
class ImageSide:
    """What the first layer needs of one image, whatever the prompt.

    Attributes:
        keys: ``(N, C)``, the embedding plus the dense prompt.
        k, v: ``(H, N, D)``, for tokens that attend to the image.
        q: ``(N, H * D)``, for the image that attends to tokens.
    """

    keys: Tensor
    k: Tensor
    v: Tensor
    q: Tensor


class _CrossAttention:
    """The weights of one cross attention, cut into heads."""

    def __init__(self, attention: Attention) -> None:
        self.heads = attention.num_heads
        self.dim = attention.internal_dim // attention.num_heads
        self.scale = self.dim**-0.5
        self.module = attention
        self.q_weight = self._cut(attention.q_proj.weight)
        self.k_weight = self._cut(attention.k_proj.weight)
        self.v_weight = self._cut(attention.v_proj.weight)
        self.q_bias = attention.q_proj.bias.view(self.heads, self.dim)
        self.v_bias = attention.v_proj.bias
        self.out_weight = attention.out_proj.weight.view(-1, self.heads, self.dim)

    def _cut(self, weight: Tensor) -> Tensor:
        return weight.view(self.heads, self.dim, -1)

    def by_head(self, x: Tensor) -> Tensor:
        """``(..., n, H * D)`` to ``(..., n, H, D)``."""
        return x.view(*x.shape[:-1], self.heads, self.dim)

    def tokens_attend(self, tokens: Tensor, keys_pe: Tensor, keys: Tensor) -> Tensor:
        """``(B, T, C)`` tokens attend to ``(B, N, C)`` positions; answers ``(B, T, C)``."""
        batch, length, channels = tokens.shape
        q = self.by_head(self.module.q_proj(tokens)) * self.scale
        q_image = torch.einsum("bthd,hdc->bhtc", q, self.k_weight)
        scores = torch.bmm(q_image.reshape(batch, -1, channels), keys_pe.transpose(1, 2))
        context = torch.bmm(torch.softmax(scores, dim=-1), keys)
        context = context.view(batch, self.heads, length, channels)
        out = torch.einsum("bhtc,hdc->bthd", context, self.v_weight).flatten(2) + self.v_bias
        return self.module.out_proj(out)  # type: ignore[no-any-return]

    def tokens_attend_shared(self, tokens: Tensor, side: ImageSide) -> Tensor:
        """As `tokens_attend`, for the first layer: one image's projections serve all tokens."""
        batch, length, _ = tokens.shape
        q = self.by_head(self.module.q_proj(tokens)) * self.scale
        q = q.permute(2, 0, 1, 3).reshape(self.heads, batch * length, self.dim)
        attention = torch.softmax(torch.bmm(q, side.k.transpose(1, 2)), dim=-1)
        out = torch.bmm(attention, side.v)
        out = out.view(self.heads, batch, length, self.dim).permute(1, 2, 0, 3).flatten(2)
        return self.module.out_proj(out)  # type: ignore[no-any-return]

    def image_attends(
        self, keys_pe: Tensor, tokens_pe: Tensor, tokens: Tensor, padding: Tensor
    ) -> Tensor:
        """``(B, N, C)`` positions attend to ``(B, T, C)`` tokens; answers ``(B, N, C)``."""
        k = self.by_head(self.module.k_proj(tokens_pe)) * self.scale
        k_image = torch.einsum("bthd,hdc->bhtc", k, self.q_weight).flatten(1, 2)
        bias = torch.einsum("bthd,hd->bht", k, self.q_bias).flatten(1)[:, None]
        scores = torch.baddbmm(bias, keys_pe, k_image.transpose(1, 2))
        return self._spread(scores, tokens, padding)

    def image_attends_shared(
        self, side: ImageSide, tokens_pe: Tensor, tokens: Tensor, padding: Tensor
    ) -> Tensor:
        """As `image_attends`, for the first layer."""
        k = self.by_head(self.module.k_proj(tokens_pe)) * self.scale
        # Heads as a block-diagonal matrix: the product answers (N, H * T), as `_spread` reads.
        diagonal = torch.eye(self.heads, device=k.device, dtype=k.dtype)
        blocks = torch.einsum("bthd,hg->bhdgt", k, diagonal).flatten(3).flatten(1, 2)
        scores = torch.matmul(side.q, blocks)
        return self._spread(scores, tokens, padding)

    def _spread(self, scores: Tensor, tokens: Tensor, padding: Tensor) -> Tensor:
        """Scores ``(B, N, H * T)`` to the output: softmax over tokens, values, projection."""
        batch, length, _ = tokens.shape
        by_head = scores.view(batch, -1, self.heads, length) + padding
        attention = torch.softmax(by_head, dim=-1).view_as(scores)
        v = self.by_head(self.module.v_proj(tokens))
        v_out = torch.einsum("bthd,chd->bhtc", v, self.out_weight).flatten(1, 2)
        return torch.baddbmm(self.module.out_proj.bias, attention, v_out)


class _Layer:
    """One two-way block with its cross attentions cut into heads."""

    def __init__(self, block: TwoWayAttentionBlock) -> None:
        self.block = block
        self.to_image = _CrossAttention(block.cross_attn_token_to_image)
        self.to_tokens = _CrossAttention(block.cross_attn_image_to_token)

    def self_attend(self, x: Tensor, v: Tensor, real: Tensor) -> Tensor:
        """Attention among ``(B, T, C)`` tokens, padding left out."""
        module = self.block.self_attn
        batch, length, _ = x.shape
        q, k, value = (
            projection(t).view(batch, length, module.num_heads, -1).transpose(1, 2)
            for projection, t in ((module.q_proj, x), (module.k_proj, x), (module.v_proj, v))
        )
        out = F.scaled_dot_product_attention(q, k, value, attn_mask=real[:, None, None])
        return module.out_proj(out.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]


class RaggedMaskDecoder:
    """SAM's mask decoder over ragged prompts of several images."""

    def __init__(self, decoder: MaskDecoder, image_pe: Tensor) -> None:
        """Wrap a decoder's weights.

        Args:
            decoder: on its device and in its dtype already.
            image_pe: ``(1, C, 64, 64)``, the prompt encoder's dense positional encoding.
        """
        self._decoder = decoder
        self._pe = image_pe.flatten(2)[0].T.contiguous()
        self._layers = [_Layer(block) for block in decoder.transformer.layers]
        self._final = _CrossAttention(decoder.transformer.final_attn_token_to_image)
        self._output_tokens = torch.cat([decoder.iou_token.weight, decoder.mask_tokens.weight])
        self._masks = decoder.num_mask_tokens
        self._upscale = decoder.output_upscaling

    def image_side(self, embedding: Tensor, dense: Tensor) -> ImageSide:
        """Project one image for the first layer.

        Args:
            embedding: ``(C, 64, 64)`` from the encoder.
            dense: the dense prompt, ``(C, 64, 64)`` or ``(C, 1, 1)`` for "no mask".
        """
        keys = (embedding + dense).flatten(1).T.contiguous()
        keys_pe = keys + self._pe
        to_image, to_tokens = self._layers[0].to_image, self._layers[0].to_tokens
        k = to_image.by_head(to_image.module.k_proj(keys_pe)).transpose(0, 1).contiguous()
        v = to_image.by_head(to_image.module.v_proj(keys)).transpose(0, 1).contiguous()
        return ImageSide(keys, k, v, to_tokens.module.q_proj(keys_pe))

    def attend(
        self, sides: Sequence[ImageSide], counts: Sequence[int], prompts: Tensor, real: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Run the two-way transformer.

        Args:
            sides: the images; ``counts[i]`` prompts, in order, belong to ``sides[i]``.
            prompts: ``(B, P, C)`` padded prompt tokens.
            real: ``(B, P) bool``, False for padding.

        Returns:
            ``(B, 4)`` predicted IoU, ``(B, 4, C / 8)`` mask weights (the single mask first,
            then the three of multimask), and the image seen by each prompt, ``(B, N, C)``.
        """
        batch = len(prompts)
        outputs = self._output_tokens.expand(batch, -1, -1)
        query_pe = torch.cat([outputs, prompts], dim=1)
        real = torch.cat([real.new_ones(batch, outputs.shape[1]), real], dim=1)
        padding = torch.zeros(real.shape, dtype=query_pe.dtype, device=real.device)
        padding = padding.masked_fill(~real, float("-inf"))[:, None, None]

        queries, keys = self._first_layer(sides, counts, query_pe, real, padding)
        for layer in self._layers[1:]:
            block = layer.block
            x = queries + query_pe
            queries = block.norm1(queries + layer.self_attend(x, queries, real))
            keys_pe = keys + self._pe
            attended = layer.to_image.tokens_attend(queries + query_pe, keys_pe, keys)
            queries = block.norm2(queries + attended)
            queries = block.norm3(queries + block.mlp(queries))
            attended = layer.to_tokens.image_attends(keys_pe, queries + query_pe, queries, padding)
            keys = block.norm4(keys + attended)
        attended = self._final.tokens_attend(queries + query_pe, keys + self._pe, keys)
        tokens = self._decoder.transformer.norm_final_attn(queries + attended)

        iou = self._decoder.iou_prediction_head(tokens[:, 0])
        heads = self._decoder.output_hypernetworks_mlps
        weights = torch.stack([heads[i](tokens[:, 1 + i]) for i in range(self._masks)], dim=1)
        return iou, weights, keys

    def _first_layer(
        self,
        sides: Sequence[ImageSide],
        counts: Sequence[int],
        query_pe: Tensor,
        real: Tensor,
        padding: Tensor,
    ) -> tuple[Tensor, Tensor]:
        layer, block = self._layers[0], self._layers[0].block
        queries = block.norm1(layer.self_attend(query_pe, query_pe, real))
        all_queries: list[Tensor] = []
        all_keys: list[Tensor] = []
        split = list(counts)
        for side, q, pe, pad in zip(
            sides,
            torch.split(queries, split),
            torch.split(query_pe, split),
            torch.split(padding, split),
            strict=True,
        ):
            q = block.norm2(q + layer.to_image.tokens_attend_shared(q + pe, side))
            q = block.norm3(q + block.mlp(q))
            attended = layer.to_tokens.image_attends_shared(side, q + pe, q, pad)
            all_queries.append(q)
            all_keys.append(block.norm4(side.keys + attended))
        if len(all_keys) == 1:
            return all_queries[0], all_keys[0]
        return torch.cat(all_queries), torch.cat(all_keys)

    def masks(self, keys: Tensor, weights: Tensor) -> Tensor:
        """Upscale and weigh.

        Args:
            keys: ``(B, N, C)`` from `attend`.
            weights: ``(B, M, C / 8)``, the chosen masks' rows.

        Returns:
            ``(B, M, 256, 256)`` low-resolution logits.
        """
        first, norm, _, second, _ = self._upscale
        batch, wanted = weights.shape[:2]
        x = _as_linear(keys, first.weight, first.bias)
        x = F.gelu(F.layer_norm(x, (x.shape[-1],), norm.weight, norm.bias, norm.eps))
        x = F.gelu(_as_linear(x, second.weight, second.bias))
        logits = torch.einsum("bnxyc,bmc->bmnxy", x.flatten(1, 1), weights)
        # (row, column) of the grid, then (row, column) inside each of the two upscalings.
        logits = logits.view(batch, wanted, GRID, GRID, 2, 2, 2, 2)
        logits = logits.permute(0, 1, 2, 4, 6, 3, 5, 7)
        return logits.reshape(batch, wanted, GRID * 4, GRID * 4)


def _as_linear(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """A transposed convolution of kernel and stride 2, without moving a pixel.

    Args:
        x: ``(..., C_in)``.
        weight: ``(C_in, C_out, 2, 2)``.
        bias: ``(C_out,)``.

    Returns:
        ``(..., 4, C_out)``; the 4 are the output's rows and columns at that position.
    """
    out = weight.shape[1]
    product = x @ weight.permute(0, 2, 3, 1).reshape(weight.shape[0], 4 * out)
    return product.view(*x.shape[:-1], 4, out) + bias
