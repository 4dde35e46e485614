"""SAM 2 in plain onnxruntime sessions: the reference for variants of this family."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from PIL import Image
from torch.nn import functional as F

from serve_app.core.geometry import box_iou, tight_box
from serve_app.core.types import LOW_RES, BoolArray, Prompt, RgbArray
from serve_app.engines.family import Tensors

_SIDE = 1024


class Sam2Reference:
    """SAM 2's files on the CPU, prompt by prompt."""

    name = "onnxruntime"

    _FEATURES = ("high_res_feats_0", "high_res_feats_1", "image_embed")

    def __init__(self, encoder: Path, decoder: Path) -> None:
        self._encoder, self._decoder = (
            onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
            for path in (encoder, decoder)
        )

    def predict(
        self, pixels: RgbArray, prompts: Sequence[Prompt]
    ) -> tuple[Tensors, list[BoolArray]]:
        """See `serve_app.engines.family.ReferenceModel.predict`."""
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
        # The export has no output for a single mask: this project's rule (docs/models.md) is used.
        weights = scores[0]
        if prompt.box is not None:
            boxes = np.array([tight_box(mask) for mask in masks], np.float64)
            weights = weights * box_iou(boxes, prompt.box)
        return masks[[int(np.argmax(weights))]]
