"""`segment_anything` itself, with which variants of this family are compared."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from numpy.typing import NDArray
from segment_anything import SamPredictor
from segment_anything.modeling import Sam

from serve_app.core.types import BoolArray, Prompt, RgbArray
from serve_app.engines.family import Tensors


class SamReference:
    """`segment_anything.SamPredictor`, eager and in single precision, prompt by prompt."""

    name = "segment_anything"

    def __init__(self, sam: Sam) -> None:
        self._predictor = SamPredictor(sam)

    @torch.inference_mode()
    def predict(
        self, pixels: RgbArray, prompts: Sequence[Prompt]
    ) -> tuple[Tensors, list[BoolArray]]:
        """See `serve_app.engines.family.ReferenceModel.predict`."""
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
