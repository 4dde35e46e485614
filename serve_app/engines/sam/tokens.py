"""Ragged prompts as one padded tensor of tokens."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from segment_anything.modeling import PromptEncoder
from torch import Tensor

from serve_app.core.types import Prompt
from serve_app.engines.sam.frame import Frame


def prompt_tokens(
    encoder: PromptEncoder, prompts: Sequence[Prompt], frames: Sequence[Frame]
) -> list[Tensor]:
    """Each prompt's sparse tokens, ``(n, 256)`` with its own ``n``, equal to SAM's.

    Points come first; without a box SAM adds one "not a point" token; a box adds its corners.
    A prompt with only a mask has no token.
    """
    coords: list[Tensor] = []
    labels: list[int] = []
    lengths: list[int] = []
    for prompt, frame in zip(prompts, frames, strict=True):
        before = len(labels)
        if prompt.point_coords is not None and prompt.point_labels is not None:
            coords.append(torch.from_numpy(frame.to_input(prompt.point_coords)))
            labels.extend(prompt.point_labels.tolist())
            if prompt.box is None:
                coords.append(torch.zeros((1, 2)))
                labels.append(-1)
        if prompt.box is not None:
            coords.append(torch.from_numpy(frame.to_input(prompt.box.reshape(2, 2))))
            labels.extend((2, 3))
        lengths.append(len(labels) - before)
    device = encoder.no_mask_embed.weight.device
    if not labels:
        return [torch.zeros((0, encoder.embed_dim), device=device) for _ in prompts]
    # One positional encoding for all points of all prompts; +0.5 is SAM's pixel centre.
    points = torch.cat(coords).to(device) + 0.5
    kinds = torch.tensor(labels, device=device)
    encoded = encoder.pe_layer.forward_with_coords(points[None], encoder.input_image_size)[0]
    table = torch.cat(
        [e.weight for e in encoder.point_embeddings] + [encoder.not_a_point_embed.weight]
    )
    encoded = torch.where((kinds == -1)[:, None], 0.0, encoded)
    tokens = encoded + table[kinds]  # index -1 is the last row: "not a point"
    return list(torch.split(tokens, lengths))


def pad_tokens(tokens: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Stack ragged token lists.

    Returns:
        ``(B, T, 256)`` tokens padded with zeros, and ``(B, T) float32`` to add to attention
        scores: 0 where a token is real, minus infinity where it is padding.
    """
    padded = torch.nn.utils.rnn.pad_sequence(list(tokens), batch_first=True)
    lengths = torch.tensor([len(t) for t in tokens], device=padded.device)
    missing = torch.arange(padded.shape[1], device=padded.device)[None] >= lengths[:, None]
    padding = torch.zeros(missing.shape, device=padded.device)
    return padded, padding.masked_fill(missing, float("-inf"))
