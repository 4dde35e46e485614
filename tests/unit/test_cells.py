"""Drawn cells: their masks are exact, whatever is done to the pixels afterwards."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from serve_tools.synthetic import cells
from serve_tools.synthetic.cells import draw_cells

pytestmark = pytest.mark.slow

SEEDS = range(8)


@pytest.mark.parametrize("seed", SEEDS)
def test_masks_are_disjoint_and_of_a_size_to_be_found(seed: int) -> None:
    scene = draw_cells(seed)
    assert scene.pixels.shape == (320, 384, 3)
    assert scene.pixels.dtype == np.uint8
    assert scene.masks
    assert all(mask.shape == (320, 384) and mask.dtype == np.bool_ for mask in scene.masks)
    assert np.sum(scene.masks, axis=0).max() == 1
    assert min(mask.sum() for mask in scene.masks) >= 30


@pytest.mark.parametrize("seed", SEEDS)
def test_masks_are_exact(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without blur and uneven light a cell is of one brightness, and the background of another."""

    def sharp(light: Any, size: Any, sigma: float) -> Any:
        return light

    def even(rng: np.random.Generator, width: int, height: int, sigma: float) -> Any:
        return np.zeros((height, width))

    monkeypatch.setattr(cells.cv2, "GaussianBlur", sharp)
    monkeypatch.setattr(cells, "_smooth_noise", even)
    scene = draw_cells(seed)
    brightness = scene.pixels.max(axis=2).astype(float)
    outside = brightness[~np.any(scene.masks, axis=0)]
    ground = float(np.median(outside))
    noise = 1.4826 * float(np.median(np.abs(outside - ground))) + 1
    for mask in scene.masks:
        inside = brightness[mask]
        assert inside.std() < 1.5 * noise
        assert abs(inside.mean() - ground) > 5
    # What is not in a mask is background, but for a few specks too small to be asked for.
    assert (np.abs(outside - ground) > 6 * noise).mean() < 0.01


def test_specks_are_not_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    areas = [int(mask.sum()) for mask in draw_cells(0).masks]
    least = sorted(areas)[len(areas) // 2]
    monkeypatch.setattr(cells, "_FEWEST_PIXELS", least)
    kept = [int(mask.sum()) for mask in draw_cells(0).masks]
    assert kept == [area for area in areas if area >= least]
    assert len(kept) < len(areas)


def test_the_same_arguments_give_the_same_scene_and_other_seeds_another() -> None:
    first, again, other = draw_cells(3), draw_cells(3), draw_cells(4)
    np.testing.assert_array_equal(first.pixels, again.pixels)
    assert len(first.masks) == len(again.masks)
    for a, b in zip(first.masks, again.masks, strict=True):
        np.testing.assert_array_equal(a, b)
    assert not np.array_equal(first.pixels, other.pixels)


def test_scenes_differ_in_number_contrast_and_polarity() -> None:
    numbers, differences = set(), []
    for seed in range(20):
        scene = draw_cells(seed)
        numbers.add(len(scene.masks))
        inside = np.any(scene.masks, axis=0)
        brightness = scene.pixels.mean(axis=2)
        differences.append(brightness[inside].mean() - brightness[~inside].mean())
    assert len(numbers) > 10
    assert min(differences) < -20
    assert max(differences) > 20
    assert min(np.abs(differences)) < 20


def test_a_scene_has_the_size_that_is_asked_for() -> None:
    scene = draw_cells(1, width=120, height=100)
    assert scene.pixels.shape == (100, 120, 3)
    assert scene.masks
