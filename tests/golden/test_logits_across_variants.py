"""Logits of one variant as the mask input of the other, with the real weights of both."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import skimage
from PIL import Image

from serve_app.capabilities import SegmentRequest
from serve_app.core.settings import GraphSettings
from serve_app.core.types import BoolArray, Float32Array, Mask, Prompt, RgbArray
from serve_app.flow.flow import SegmentationFlow
from serve_app.local import build_local_service

from .cases import iou

pytestmark = pytest.mark.weights

MODELS = ("vit_t", "sam2_hiera_tiny")
# A cup, a clear object, in a wide, a tall and a very wide picture of it.
BOXES = {"wide": [325, 232, 408, 328], "tall": [232, 192, 328, 275], "strip": [325, 12, 408, 108]}


def picture(name: str) -> RgbArray:
    folder = Path(skimage.__file__).parent / "data"
    pixels = np.asarray(Image.open(folder / "coffee.png").convert("RGB"))
    pixels = {"wide": pixels, "tall": np.rot90(pixels), "strip": pixels[220:340]}[name]
    return np.ascontiguousarray(pixels)


@pytest.fixture(scope="module")
def services(one_variant: Callable[..., GraphSettings]) -> dict[str, SegmentationFlow]:
    return {model: build_local_service(one_variant(model)) for model in MODELS}


async def _mask(service: SegmentationFlow, image: RgbArray, prompt: Prompt) -> Mask:
    request = SegmentRequest(image=image, task=[prompt], return_logits=True)
    mask: Mask = (await service.segment(request)).results[0].masks[0]
    return mask


def _padded_view(logits: Float32Array, shape: tuple[int, int]) -> BoolArray:
    """The mask of logits in the padded frame: the nearest cell of each pixel's centre."""
    rows, columns = (
        ((np.arange(side) + 0.5) * 256 / max(shape)).astype(int).clip(0, 255) for side in shape
    )
    found: BoolArray = logits[np.ix_(rows, columns)] > 0
    return found


@pytest.mark.parametrize("name", BOXES)
@pytest.mark.parametrize("source", MODELS)
async def test_logits_are_returned_in_the_frame_of_the_padded_image(
    services: dict[str, SegmentationFlow], name: str, source: str
) -> None:
    image = picture(name)
    first = await _mask(services[source], image, Prompt(box=BOXES[name], multimask_output=False))
    assert first.low_res_logits is not None
    view = _padded_view(first.low_res_logits.astype(np.float32), image.shape[:2])
    assert iou(view, first.array) >= 0.9


@pytest.mark.parametrize("name", BOXES)
async def test_a_mask_passes_from_fast_to_accurate_and_back(
    services: dict[str, SegmentationFlow], name: str
) -> None:
    image, box = picture(name), Prompt(box=BOXES[name], multimask_output=False)
    fast, accurate = (services[model] for model in MODELS)
    first = await _mask(fast, image, box)
    alone = Prompt(mask_input=first.low_res_logits, multimask_output=False)
    second = await _mask(accurate, image, alone)
    assert iou(first.array, second.array) >= 0.9
    # MobileSAM makes little of a mask alone, its own too; with the box it refines it.
    back = Prompt(mask_input=second.low_res_logits, box=BOXES[name], multimask_output=False)
    assert iou((await _mask(fast, image, back)).array, second.array) >= 0.9
