"""Low-resolution logits in one frame, that of the padded square, whatever the model's own is."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch.nn import functional as F

from serve_app.core.geometry import mask_iou
from serve_app.core.inference import DecodeOptions
from serve_app.core.rle import decode_rle
from serve_app.core.types import BoolArray, Float32Array
from serve_app.engines.sam.cut import cut_mask
from serve_app.engines.sam.frame import PADDING_LOGIT, Frame
from serve_app.engines.sam.postprocess import postprocess_masks

SHORT, LONG = st.integers(1, 400), st.integers(1, 8)
SIDES = st.tuples(SHORT, LONG, st.booleans()).map(
    lambda s: (s[0], min(3000, s[0] * s[1]))[:: 1 if s[2] else -1]
)
LINES = st.sampled_from([(1, 1), (1, 2), (1, 300), (300, 1), (1, 16_000), (16_000, 1)])


def _ellipse(x: float, y: float, rx: float, ry: float) -> Float32Array:
    """Logits of an ellipse in the stretched square, in shares of its side."""
    rows, columns = (np.mgrid[:256, :256] + 0.5) / 256
    distance = ((columns - x) / rx) ** 2 + ((rows - y) / ry) ** 2
    return np.clip(6 * (1 - distance), -12, 8).astype(np.float32)


def _mask(logits: Float32Array, frame: Frame) -> BoolArray:
    return decode_rle(cut_mask(logits, frame).rle)


ELLIPSES = st.builds(
    _ellipse, *(st.floats(0.2, 0.8) for _ in "xy"), *(st.floats(0.15, 0.6) for _ in "xy")
)


@settings(max_examples=60)
@given(SIDES | LINES, ELLIPSES)
def test_moved_logits_are_the_same_mask_in_either_frame(
    size: tuple[int, int], logits: Float32Array
) -> None:
    stretched, padded = (Frame.of(*size, mode) for mode in ("stretch", "pad"))
    moved = stretched.to_padded(logits)
    mask = _mask(logits, stretched)
    if min(size) >= 8:
        # Of fewer pixels each is a large part of the mask, or the mask lies between them.
        assert mask.any()
        assert mask_iou(mask, _mask(moved, padded)) >= 0.9
        assert mask_iou(mask, _mask(stretched.from_padded(moved), stretched)) >= 0.9
    assert np.isfinite(stretched.from_padded(moved)).all()
    # SAM's own logits are in this frame already.
    assert padded.to_padded(logits) is logits
    assert padded.from_padded(logits) is logits


@given(SIDES | LINES)
def test_the_padding_is_negative_and_says_nothing(size: tuple[int, int]) -> None:
    frame = Frame.of(*size, "stretch")
    moved = frame.to_padded(np.full((256, 256), 9.0, np.float32))
    rows, columns = (max(1, math.ceil(256 * side / max(size) - 0.125)) for side in size)
    np.testing.assert_allclose(moved[:rows, :columns], 9, rtol=1e-6)
    assert (moved[rows + 1 :] == PADDING_LOGIT).all()
    assert (moved[:, columns + 1 :] == PADDING_LOGIT).all()
    assert PADDING_LOGIT < -5
    # Nothing of it comes back, whatever a caller puts there.
    moved[rows + 1 :], moved[:, columns + 1 :] = 99, 99
    np.testing.assert_allclose(frame.from_padded(moved), 9, rtol=1e-6)


@given(SIDES | LINES, st.integers(0, 2**31))
def test_from_padded_is_a_bilinear_view_of_the_images_part(
    size: tuple[int, int], seed: int
) -> None:
    """Against `grid_sample`, which clamps at the border of the part as this does."""
    noise = np.random.default_rng(seed).normal(0, 5, (256, 256)).astype(np.float32)
    lengths = [max(1, math.floor(1024 * side / max(size) + 0.5)) / 4 for side in size]
    part = torch.from_numpy(noise[: math.ceil(lengths[0]), : math.ceil(lengths[1])])
    # The place of each stretched cell's centre in the part, -1 to 1 from edge to edge.
    y, x = (
        (torch.arange(256, dtype=torch.float64) + 0.5) / 256 * n / math.ceil(n) * 2 - 1
        for n in lengths
    )
    grid = torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1)[None]
    wanted = F.grid_sample(
        part[None, None].double(), grid, padding_mode="border", align_corners=False
    )
    found = Frame.of(*size, "stretch").from_padded(noise)
    np.testing.assert_allclose(found, wanted[0, 0].numpy(), atol=1e-3)


@pytest.mark.parametrize("size", [(128, 256), (256, 128), (32, 256), (192, 256), (256, 256)])
def test_to_padded_shrinks_as_pillow_does(size: tuple[int, int]) -> None:
    """Sides of whole cells: the part is a plain resize, antialiased."""
    noise = np.random.default_rng(3).normal(0, 5, (256, 256)).astype(np.float32)
    wanted = Image.fromarray(noise).resize(size[::-1], Image.Resampling.BILINEAR)
    found = Frame.of(*size, "stretch").to_padded(noise)[: size[0], : size[1]]
    np.testing.assert_allclose(found, np.asarray(wanted), atol=1e-4)


def test_returned_logits_are_in_the_padded_frame() -> None:
    logits = torch.from_numpy(_ellipse(0.5, 0.5, 0.3, 0.3))[None]
    options = DecodeOptions(return_logits=True)
    for mode in ("pad", "stretch"):
        frame = Frame.of(100, 400, mode)
        (mask,) = postprocess_masks(logits, torch.tensor([0.9]), frame, options)
        assert mask.low_res_logits is not None
        wanted = frame.to_padded(logits[0].numpy()).astype(np.float16)
        np.testing.assert_array_equal(mask.low_res_logits, wanted)
