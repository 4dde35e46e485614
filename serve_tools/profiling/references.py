"""What a variant's embeddings and masks are held against.

A reference answers by another way than ours: another variant, or the model's own library without
any of our batching, regrouping or settings.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch.nn import functional as F

from serve_app.core.settings import GraphSettings
from serve_app.core.types import (
    LOW_RES,
    BoolArray,
    DecodeJob,
    DecodeOptions,
    Float32Array,
    Prompt,
    RgbArray,
)
from serve_app.models.factory import ModelSource
from serve_app.profiles.variants import encoder_compute
from serve_tools.evaluation.prompts import tight_box
from serve_tools.profiling.engines import load_variant

Tensors = Mapping[str, NDArray[Any]]
_SIDE = 1024


class Reference(Protocol):
    """Another way to the same answers."""

    name: str

    def answer(
        self, pixels: RgbArray, prompts: Sequence[Prompt]
    ) -> tuple[Tensors, list[BoolArray]]:
        """The embedding's tensors, and ``(M, H, W)`` masks for each prompt."""
        ...


class VariantReference:
    """Another variant of the same configuration."""

    def __init__(self, settings: GraphSettings, variant: str) -> None:
        self.name = variant
        self._encoder, self._decoder = load_variant(settings, variant)

    def answer(
        self, pixels: RgbArray, prompts: Sequence[Prompt]
    ) -> tuple[Tensors, list[BoolArray]]:
        embedding = self._encoder.encode_batch([pixels])[0]
        jobs = [DecodeJob(embedding, prompt, DecodeOptions()) for prompt in prompts]
        empty = np.zeros((0, *pixels.shape[:2]), np.bool_)
        return embedding.tensors, [
            np.stack([mask.array for mask in masks]) if masks else empty
            for masks in self._decoder.decode_batch(jobs)
        ]


class SamReference:
    """`segment_anything.SamPredictor`, eager and in single precision, prompt by prompt."""

    name = "segment_anything"

    def __init__(self, architecture: str, checkpoint: Path, device: str) -> None:
        from segment_anything import SamPredictor

        from serve_app.engines.sam.model import load_sam

        self._predictor = SamPredictor(load_sam(architecture, checkpoint).to(device))

    @torch.inference_mode()
    def answer(
        self, pixels: RgbArray, prompts: Sequence[Prompt]
    ) -> tuple[Tensors, list[BoolArray]]:
        self._predictor.set_image(pixels)
        tensors = {"image_embed": self._predictor.get_image_embedding()[0].cpu().numpy()}
        masks = [
            self._predictor.predict(
                point_coords=_writable(prompt.point_coords),
                point_labels=_writable(prompt.point_labels),
                box=_writable(prompt.box),
                multimask_output=prompt.multimask_output,
            )[0]
            for prompt in prompts
        ]
        return tensors, masks


def _writable(array: NDArray[Any] | None) -> NDArray[Any] | None:
    """A copy: torch warns of a prompt's arrays, which are read-only."""
    return None if array is None else array.copy()


class Sam2Reference:
    """SAM 2's files in plain onnxruntime sessions on the CPU, prompt by prompt."""

    name = "onnxruntime"

    _FEATURES = ("high_res_feats_0", "high_res_feats_1", "image_embed")

    def __init__(self, encoder: Path, decoder: Path) -> None:
        import onnxruntime

        self._encoder, self._decoder = (
            onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
            for path in (encoder, decoder)
        )

    def answer(
        self, pixels: RgbArray, prompts: Sequence[Prompt]
    ) -> tuple[Tensors, list[BoolArray]]:
        image = Image.fromarray(pixels).resize((_SIDE, _SIDE), Image.Resampling.BILINEAR)
        values = np.asarray(image, np.float32) / 255
        # ImageNet's mean and deviation.
        values = (values - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
        tensor = values.transpose(2, 0, 1)[None].astype(np.float32)
        found = self._encoder.run(list(self._FEATURES), {"image": tensor})
        features = dict(zip(self._FEATURES, found, strict=True))
        masks = [self._masks(features, prompt, pixels.shape[:2]) for prompt in prompts]
        return {name: value[0] for name, value in features.items()}, masks

    def _masks(self, features: Tensors, prompt: Prompt, size: tuple[int, ...]) -> BoolArray:
        scale = _SIDE / np.array(size[::-1])
        box = [] if prompt.box is None else list(prompt.box.reshape(2, 2) * scale)
        points = [] if prompt.point_coords is None else list(prompt.point_coords * scale)
        clicks = [] if prompt.point_labels is None else prompt.point_labels.tolist()
        inputs = {
            **features,
            "point_coords": np.array([box + points], np.float32),
            "point_labels": np.array([[2, 3][: len(box)] + clicks], np.float32),
            "mask_input": np.zeros((1, 1, LOW_RES, LOW_RES), np.float32),
            "has_mask_input": np.zeros(1, np.float32),
        }
        logits, scores = self._decoder.run(["masks", "iou_predictions"], inputs)
        full = F.interpolate(torch.from_numpy(logits), size, mode="bilinear", align_corners=False)
        masks: BoolArray = full[0].numpy() > 0
        if prompt.multimask_output:
            return masks
        # The export has no output for one mask: this project's rule (docs/models.md) is kept.
        weights = scores[0]
        if prompt.box is not None:
            weights = weights * [_box_iou(mask, prompt.box) for mask in masks]
        return masks[[int(np.argmax(weights))]]


def _box_iou(mask: BoolArray, box: Float32Array) -> float:
    """IoU of a mask's extent with an XYXY box."""
    if not mask.any():
        return 0.0
    x0, y0, x1, y1 = tight_box(mask)
    wide = max(0.0, min(x1, box[2]) - max(x0, box[0]))
    high = max(0.0, min(y1, box[3]) - max(y0, box[1]))
    shared = float(wide * high)
    areas = (x1 - x0) * (y1 - y0) + float((box[2] - box[0]) * (box[3] - box[1]))
    return shared / (areas - shared)


def load_reference(settings: GraphSettings, variant: str) -> Reference:
    """The reference of a variant: the one its settings name, else its model's own library."""
    chosen, source = settings.variants[variant], ModelSource.of(settings)
    if chosen.reference is not None:
        return VariantReference(settings, chosen.reference)
    spec, files = source.spec(chosen.model), source.files(chosen.model)
    if spec.family == "sam2_onnx":
        return Sam2Reference(files["encoder"], files["decoder"])
    device = encoder_compute(chosen).device
    return SamReference(str(spec.architecture), files["checkpoint"], device)
