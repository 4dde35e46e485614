"""The features that cascades are fitted on."""

from __future__ import annotations

import math

import numpy as np
import pytest

from serve_app.core.types import Prompt
from serve_app.routing.cascade import best_mask, features, prompt_type

from ..fakes.masks import rectangle_mask as mask

POINT = Prompt(point_coords=[[5, 5]], point_labels=[1])
BOX = Prompt(box=[10, 10, 30, 20], multimask_output=False)


@pytest.mark.parametrize(
    ("prompt", "form"),
    [
        (POINT, "point-3"),
        (Prompt(point_coords=[[5, 5]], point_labels=[1], multimask_output=False), "point-1"),
        (Prompt(box=[1, 1, 5, 5]), "box-3"),
        (BOX, "box-1"),
        (Prompt(point_coords=[[2, 2]], point_labels=[1], box=[1, 1, 5, 5]), "box-3"),
        (Prompt(mask_input=np.zeros((256, 256))), "point-3"),
    ],
)
def test_a_prompts_form(prompt: Prompt, form: str) -> None:
    assert prompt_type(prompt) == form


def test_the_best_mask_is_the_one_with_the_highest_predicted_iou() -> None:
    masks = [mask((0, 0, 5, 5), 0.5), mask((0, 0, 9, 9), 0.7), mask((0, 0, 2, 2), 0.6)]
    assert best_mask(masks) is masks[1]


def test_features_of_one_mask_for_a_point() -> None:
    found = features(POINT, [mask((3, 4, 8, 6), 0.8, 0.7)])
    assert found == {
        "score": 0.8,
        "stability": 0.7,
        "log_share": pytest.approx(math.log(49 / 2400)),
    }


def test_features_are_of_the_best_mask_and_tell_how_much_the_sizes_differ() -> None:
    masks = [mask((0, 0, 3, 3), 0.3), mask((0, 0, 20, 10), 0.9, 0.6), mask((0, 0, 30, 30), 0.2)]
    found = features(POINT, masks)
    assert (found["score"], found["stability"]) == (0.9, 0.6)
    assert found["spread"] == pytest.approx(math.log(201 / 10))
    assert features(POINT, masks[:1] * 3)["spread"] == 0


def test_features_of_a_box_tell_how_the_mask_fits_it() -> None:
    exact = features(BOX, [mask((10, 10, 20, 10))])
    assert (exact["fit"], exact["fill"]) == (1, 1)
    half = features(BOX, [mask((10, 10, 10, 10))])
    assert (half["fit"], half["fill"]) == (0.5, 0.5)
    beyond = features(BOX, [mask((5, 10, 25, 10))])
    assert (beyond["fit"], beyond["fill"]) == (pytest.approx(200 / 250), pytest.approx(250 / 200))
    beside = features(BOX, [mask((40, 30, 5, 5))])
    assert beside["fit"] == 0


def test_an_empty_mask_has_features() -> None:
    found = features(BOX, [mask((0, 0, 0, 0), 0.1)])
    assert all(math.isfinite(value) for value in found.values())
    assert (found["fit"], found["fill"]) == (0, 0)


def test_the_names_are_documented() -> None:
    named = {*features(BOX, [mask((1, 1, 5, 5))] * 3)}
    assert named == {"score", "stability", "log_share", "spread", "fit", "fill"}
    assert all(f"``{name}``" in (features.__doc__ or "") for name in named)
