"""The tiny CLIP model in ``assets/tiny_clip``, which `serve_tools.workshop.tiny_clip` trained."""

from __future__ import annotations

from pathlib import Path

from serve_app.core.inference import Candidate
from serve_app.core.rle import encode_rle, rle_bbox
from serve_app.core.settings import OpenClipSettings
from serve_tools.synthetic.scenes import Scene, all_captions
from serve_tools.workshop.tiny_clip import ARCHITECTURE, BACKGROUND

TINY_CLIP = Path(__file__).parent / "assets" / "tiny_clip"


def tiny_clip_settings() -> OpenClipSettings:
    """Its settings; all captions are negatives, since the model knows no general ones."""
    return OpenClipSettings(
        architecture=ARCHITECTURE,
        pretrained=str(TINY_CLIP / f"{ARCHITECTURE}.safetensors"),
        model_config_path=str(TINY_CLIP / f"{ARCHITECTURE}.json"),
        templates=("{}",),
        negatives=(*all_captions(), BACKGROUND),
    )


def captions(scene: Scene) -> tuple[str, ...]:
    """The captions of a scene's objects, in order."""
    return tuple(item.caption for item in scene.objects)


def scene_candidates(scene: Scene) -> tuple[Candidate, ...]:
    """The objects of a scene with their exact masks, in order."""
    masks = [encode_rle(item.mask) for item in scene.objects]
    return tuple(Candidate(bbox=rle_bbox(rle), mask=rle) for rle in masks)
