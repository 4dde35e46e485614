"""Models by their authors' library or a plain runtime, with which variants are compared."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from numpy.typing import NDArray
from PIL import Image
from segment_anything import SamPredictor
from segment_anything.modeling import Sam
from torch.nn import functional as F

from serve_app.core.geometry import box_iou, tight_box
from serve_app.core.types import LOW_RES, BoolArray, Prompt, RgbArray
from serve_tools.references.families import Tensors

_SIDE = 1024


class SamReference:
    """`segment_anything.SamPredictor`, eager and in single precision, prompt by prompt."""

    name = "segment_anything"

    def __init__(self, sam: Sam) -> None:
        self._predictor = SamPredictor(sam)

    @torch.inference_mode()
    def predict(
        self, pixels: RgbArray, prompts: Sequence[Prompt]
    ) -> tuple[Tensors, list[BoolArray]]:
        """See `ReferenceModel.predict`."""
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
        self._encoder, self._decoder = (
            onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
            for path in (encoder, decoder)
        )

    def predict(
        self, pixels: RgbArray, prompts: Sequence[Prompt]
    ) -> tuple[Tensors, list[BoolArray]]:
        """See `ReferenceModel.predict`."""
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
