"""Reading verified checkpoints, under the parameter names of `serve_app.engines.sam.model`.

A separate module, because a process that runs a saved or hand-written graph needs neither
`segment_anything` nor timm, and importing them takes seconds.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

ENCODER_PREFIX = "image_encoder."


def read_checkpoint(architecture: str, checkpoint: Path) -> Mapping[str, Tensor]:
    """The tensors of a checkpoint; the caller has verified its hash.

    The file is mapped into memory: unused tensors are never read.
    """
    state: Mapping[str, Tensor] = torch.load(
        checkpoint, map_location="cpu", weights_only=True, mmap=True
    )
    return _rename_mobile_sam(state) if architecture == "vit_t" else state


_RENAMES = (
    (r"^image_encoder\.patch_embed\.seq\.0\.", "image_encoder.patch_embed.conv1."),
    (r"^image_encoder\.patch_embed\.seq\.2\.", "image_encoder.patch_embed.conv2."),
    (r"^image_encoder\.layers\.(\d+)\.blocks\.", r"image_encoder.stages.\1.blocks."),
    (r"\.c\.", ".conv."),
    (r"^image_encoder\.(patch_embed|stages)\.", r"image_encoder.backbone.\1."),
)


def _rename_mobile_sam(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename MobileSAM's parameters as in timm, which puts a downsampling into the next stage."""
    renamed = {}
    for key, value in state.items():
        unused = key.startswith(("image_encoder.head.", "image_encoder.norm_head."))
        if unused or key.endswith("attention_bias_idxs"):
            continue
        new = re.sub(
            r"^image_encoder\.layers\.(\d+)\.downsample\.",
            lambda m: f"image_encoder.stages.{int(m[1]) + 1}.downsample.",
            key,
        )
        for pattern, replacement in _RENAMES:
            new = re.sub(pattern, replacement, new)
        renamed[new] = value
    return renamed
