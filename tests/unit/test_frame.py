"""Between the image's pixels and the model's square, against `segment_anything`'s own way."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from segment_anything.utils.transforms import ResizeLongestSide
from torch import Tensor
from torch.nn import functional as F

from serve_app.core.inference import DecodeOptions
from serve_app.core.rle import decode_rle, encode_rle, rle_bbox
from serve_app.engines.sam.cut import Taps, cut_mask
from serve_app.engines.sam.frame import IMAGE_SIZE, Frame, model_input
from serve_app.engines.sam.postprocess import postprocess_masks

SIDES = st.integers(1, 400)


def _logits(seed: int, count: int = 2) -> Tensor:
    return torch.randn((count, 256, 256), generator=torch.Generator().manual_seed(seed)) * 10


def _whole_square(logits: Tensor, frame: Frame) -> Tensor:
    """As SAM does it: all of the square is scaled up, then cut."""
    size = (IMAGE_SIZE, IMAGE_SIZE)
    square = F.interpolate(logits[None], size, mode="bilinear", align_corners=False)
    square = square[..., : frame.input_height, : frame.input_width]
    image = (frame.height, frame.width)
    return F.interpolate(square, image, mode="bilinear", align_corners=False)[0]


def _check_cut(logits: Tensor, frame: Frame, full: Tensor, offset: float = 1.0) -> None:
    """A cut against the whole full-size logits; one pixel may round to the other side."""
    found = cut_mask(logits.numpy(), frame, offset)
    mask = decode_rle(found.rle)
    wanted = (full > 0).numpy()
    assert (mask ^ wanted).sum() <= 1
    assert found.rle == encode_rle(mask)
    assert found.area == mask.sum()
    assert abs(found.inner - int((full > offset).sum())) <= 1
    assert abs(found.outer - int((full > -offset).sum())) <= 1
    assert found.bbox == rle_bbox(found.rle)


def _blob(seed: int) -> Tensor:
    """Logits above zero in a few places alone, with smooth and with ragged borders."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[:256, :256]
    x, y, radius = rng.uniform(0, 256), rng.uniform(0, 256), rng.uniform(1, 120)
    distance = np.hypot(columns - x, rows - y) + rng.normal(0, rng.choice([0, 3]), (256, 256))
    return torch.from_numpy((radius - distance).astype(np.float32) / 3)


@pytest.mark.slow
@settings(max_examples=40, deadline=None)
@given(SIDES, SIDES, st.integers(0, 10**6), st.sampled_from([0.3, 1.0, 6.0]))
def test_masks_are_those_of_the_whole_square(h: int, w: int, seed: int, offset: float) -> None:
    frame = Frame.of(h, w, "pad")
    for logits in (_logits(seed, 1)[0], _blob(seed)):
        _check_cut(logits, frame, _whole_square(logits[None], frame)[0], offset)


@pytest.mark.parametrize("shorter", [*range(1, 12), 509, 510, 511, 512, 1020, 1021, 1022, 1023])
def test_masks_are_exact_wherever_the_image_ends_in_a_cell(shorter: int) -> None:
    """At a longer side of 1024 each length of the shorter is its own place in the square."""
    for frame in (Frame.of(shorter, 1024, "pad"), Frame.of(1024, shorter, "pad")):
        assert min(frame.input_height, frame.input_width) == shorter
        logits = _logits(1, 1)
        _check_cut(logits[0], frame, _whole_square(logits, frame)[0])


@given(SIDES, SIDES)
def test_the_place_in_the_square_is_sams(height: int, width: int) -> None:
    frame = Frame.of(height, width, "pad")
    rows, columns = ResizeLongestSide.get_preprocess_shape(height, width, IMAGE_SIZE)
    # Except that a side never vanishes.
    assert (frame.input_height, frame.input_width) == (max(1, rows), max(1, columns))


@given(SIDES, SIDES, st.floats(-50, 450), st.floats(-50, 450))
def test_points_are_mapped_as_sam_maps_them(height: int, width: int, x: float, y: float) -> None:
    points = np.array([[x, y]], np.float32)
    frame = Frame.of(height, width, "pad")
    ours = frame.to_input(points)
    assert ours.dtype == np.float32
    scale = (frame.input_width / width, frame.input_height / height)
    np.testing.assert_allclose(ours, points * scale, rtol=1e-6, atol=1e-6)
    if min(ResizeLongestSide.get_preprocess_shape(height, width, IMAGE_SIZE)) > 0:
        theirs = ResizeLongestSide(IMAGE_SIZE).apply_coords(points, (height, width))
        np.testing.assert_allclose(ours, theirs, rtol=1e-6, atol=1e-6)


def test_images_are_resized_as_sam_resizes_them() -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (70, 123, 3), dtype=np.uint8)
    ours = Frame.of(70, 123, "pad").resize(pixels)
    np.testing.assert_array_equal(ours, ResizeLongestSide(IMAGE_SIZE).apply_image(pixels))
    # A part of a larger image, as crops are, is no whole block of memory.
    part = pixels[10:50, 20:90]
    np.testing.assert_array_equal(
        Frame.of(40, 70, "pad").resize(part), Frame.of(40, 70, "pad").resize(part.copy())
    )


@pytest.mark.parametrize("shape", [(1, 1), (1, 30_000), (30_000, 1), (2, 5_000)])
def test_extreme_shapes_keep_at_least_a_line(shape: tuple[int, int]) -> None:
    frame = Frame.of(*shape, "pad")
    assert max(frame.input_height, frame.input_width) == IMAGE_SIZE
    assert min(frame.input_height, frame.input_width) >= 1
    resized = frame.resize(np.full((*shape, 3), 200, np.uint8))
    assert resized.shape == (frame.input_height, frame.input_width, 3)
    assert (resized == 200).all()


@pytest.mark.parametrize("shape", [(3000, 4000), (1025, 1023), (2, 16_384)])
def test_masks_of_images_beyond_the_square_are_exact(shape: tuple[int, int]) -> None:
    frame, logits = Frame.of(*shape, "pad"), torch.stack([_blob(5), _logits(2, 1)[0]])
    for one, full in zip(logits, _whole_square(logits, frame), strict=True):
        _check_cut(one, frame, full)


@pytest.mark.parametrize("logits", [np.zeros((64, 64), np.float32), np.zeros((256, 256))])
def test_logits_of_another_kind_are_refused(logits: np.ndarray) -> None:
    with pytest.raises(ValueError, match="256"):
        cut_mask(logits, Frame.of(30, 40, "pad"))


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 9000), st.integers(1, 1024), st.sampled_from(["pad", "stretch"]))
def test_pixels_are_weighted_as_torch_interpolates(pixels: int, inputs: int, mode: str) -> None:
    cells = torch.eye(256)[None]
    if mode == "pad":
        cells = F.interpolate(cells, IMAGE_SIZE, mode="linear", align_corners=False)
        cells = cells[..., :inputs]
    wanted = F.interpolate(cells, pixels, mode="linear", align_corners=False)[0].T.numpy()
    taps = Taps.of(pixels, inputs, "pad" if mode == "pad" else "stretch")
    found = np.zeros_like(wanted)
    places = taps.first[:, None] + np.arange(taps.weights.shape[1])
    np.put_along_axis(found, places, taps.weights, axis=1)
    np.testing.assert_allclose(found, wanted, atol=1e-4)
    np.testing.assert_allclose(taps.weights.sum(axis=1), 1, atol=1e-6)
    assert (np.diff(taps.first) >= 0).all()


def test_the_stretched_frame_fills_the_square() -> None:
    frame = Frame.of(300, 451, "stretch")
    corners = np.array([[0, 0], [451, 300]], np.float32)
    np.testing.assert_array_equal(frame.to_input(corners), [[0, 0], [1024, 1024]])
    logits = _logits(3)
    direct = F.interpolate(logits[None], (300, 451), mode="bilinear", align_corners=False)[0]
    for one, full in zip(logits, direct, strict=True):
        _check_cut(one, frame, full)


def test_padding_is_zero_after_normalisation() -> None:
    tensor = model_input(np.full((3, 1024, 3), 60, np.uint8), "pad")
    assert tensor.shape == (1, 3, 1024, 1024)
    mean, std = np.array([123.675, 116.28, 103.53]), np.array([58.395, 57.12, 57.375])
    np.testing.assert_allclose(tensor[0, :, 2, 1023], (60 - mean) / std, rtol=1e-6)
    assert not tensor[0, :, 3:].any()


def _finish(logits: Tensor, options: DecodeOptions) -> list[tuple[float, int]]:
    frame = Frame.of(256, 256, "stretch")
    masks = postprocess_masks(logits, torch.arange(len(logits)) / 10, frame, options)
    return [(mask.stability_score, mask.area) for mask in masks]


def test_stability_is_the_iou_of_a_looser_and_a_stricter_cut() -> None:
    logits = torch.full((1, 256, 256), -9.0)
    logits[0, 0, :19] = 5.0
    logits[0, 0, 19] = 0.5
    exact = DecodeOptions(stability_score_thresh=0.95)
    # 19 of 20 is no less than 0.95, in whatever precision.
    assert _finish(logits, exact) == [(0.95, 20)]
    assert _finish(logits, DecodeOptions(stability_score_thresh=0.951)) == []
    assert _finish(logits, DecodeOptions(stability_score_offset=0.4)) == [(1.0, 20)]


def test_an_empty_mask_is_answered_but_passes_no_threshold() -> None:
    """Meta's score of an empty mask is NaN, which no threshold lets pass."""
    logits = torch.stack([torch.full((256, 256), -9.0), torch.full((256, 256), 9.0)])
    assert _finish(logits, DecodeOptions()) == [(0.0, 0), (1.0, 65_536)]
    assert _finish(logits, DecodeOptions(stability_score_thresh=0.1)) == [(1.0, 65_536)]


def test_scores_stay_with_their_masks_when_some_are_dropped() -> None:
    logits = torch.full((3, 256, 256), -9.0)
    logits[2, 10:20, 30:50] = 9.0
    frame, options = Frame.of(256, 256, "stretch"), DecodeOptions(stability_score_thresh=0.5)
    (mask,) = postprocess_masks(logits, torch.tensor([0.1, 0.2, 0.3]), frame, options)
    assert mask.score == pytest.approx(0.3)
    assert (mask.bbox, mask.area) == ((30, 10, 20, 10), 200)
    assert np.array_equal(mask.array, (logits[2] > 0).numpy())
