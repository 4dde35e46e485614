"""Building SAM's modules and loading verified checkpoints into them.

``vit_b``, ``vit_l`` and ``vit_h`` are `segment_anything`'s own.  ``vit_t`` (MobileSAM, Zhang et
al. 2023) has the same prompt encoder and mask decoder, with timm's TinyViT-5M as image
encoder; no code of the MobileSAM repository is needed.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from segment_anything.build_sam import _build_sam, sam_model_registry
from segment_anything.modeling import Sam
from torch import Tensor, nn

from serve_app.engines.sam.checkpoint import read_checkpoint
from serve_app.engines.sam.frame import IMAGE_SIZE


class ChannelNorm(nn.LayerNorm):
    """The neck's norm over the channels of ``(B, C, H, W)``, usable in half precision.

    `segment_anything`'s own ``LayerNorm2d`` squares its input.  MobileSAM's neck has values
    above 256; their squares overflow float16.  Torch's LayerNorm sums in float32.
    """

    def __init__(self) -> None:
        super().__init__(256, eps=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class TinyVitEncoder(nn.Module):
    """MobileSAM's image encoder: TinyViT-5M at stride 16, and SAM's neck.

    Args of `forward`: ``(B, 3, 1024, 1024)`` normalised RGB; returns ``(B, 256, 64, 64)``.
    """

    img_size = IMAGE_SIZE

    def __init__(self) -> None:
        super().__init__()
        # Importing timm takes seconds, and only the encoder's process needs it.
        import timm

        backbone: Any = timm.create_model("tiny_vit_5m_224", pretrained=False, num_classes=0)
        # The last stage keeps the resolution of the one before it: 64 x 64, as SAM needs.
        backbone.stages[3].downsample.conv2.conv.stride = (1, 1)
        backbone.head = nn.Identity()
        self.backbone: Any = backbone
        self.neck = nn.Sequential(
            nn.Conv2d(320, 256, kernel_size=1, bias=False),
            ChannelNorm(),
            nn.Conv2d(256, 256, kernel_size=3, padding=1, bias=False),
            ChannelNorm(),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.backbone.patch_embed(x)
        x = self.backbone.stages(x)
        return self.neck(x)  # type: ignore[no-any-return]


def build_sam(architecture: str, with_encoder: bool = True) -> Sam:
    """A SAM with random weights, in evaluation mode.

    Args:
        architecture: ``vit_t``, ``vit_b``, ``vit_l`` or ``vit_h``.
        with_encoder: False for a process that only decodes: the encoder is 99 % of the weights.
    """
    if with_encoder and architecture != "vit_t":
        sam = sam_model_registry[architecture]()
        neck = sam.image_encoder.neck
        neck[1], neck[3] = ChannelNorm(), ChannelNorm()
    else:
        # The prompt encoder and mask decoder are the same in all; the smallest encoder that
        # the builder accepts is replaced.
        sam = _build_sam(
            encoder_embed_dim=16,
            encoder_depth=1,
            encoder_num_heads=1,
            encoder_global_attn_indexes=[0],
        )
        sam.image_encoder = TinyVitEncoder() if with_encoder else nn.Identity()
    return sam.eval().requires_grad_(False)


def load_sam(architecture: str, checkpoint: Path, with_encoder: bool = True) -> Sam:
    """A SAM with the weights of a checkpoint; the caller has verified its hash.

    The file is mapped into memory: without the encoder its weights are never read.
    """
    state = read_checkpoint(architecture, checkpoint)
    if not with_encoder:
        state = {k: v for k, v in state.items() if not k.startswith("image_encoder.")}
    sam = build_sam(architecture, with_encoder)
    sam.load_state_dict(state)
    return sam
