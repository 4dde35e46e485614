"""Recall and time of generators whose masks are known."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from serve_app.core.rle import Rle, encode_rle
from serve_app.core.types import RgbArray
from serve_tools.evaluation.everything import KnownImage, drawn_images, score_everything


def _square(x: int, side: int = 10) -> Rle:
    mask = np.zeros((20, 100), np.bool_)
    mask[5 : 5 + side, x : x + side] = True
    return encode_rle(mask)


OBJECTS = (_square(0), _square(20), _square(40), _square(60))
IMAGE = KnownImage(np.zeros((20, 100, 3), np.uint8), OBJECTS)


def test_an_object_is_found_by_a_mask_of_its_own_that_overlaps_by_half() -> None:
    def generate(pixels: RgbArray) -> list[Rle]:
        # Exact, IoU 0.64, IoU 0.36, and a second one of the first object.
        return [_square(0), _square(20, 8), _square(40, 6), _square(0, 9)]

    score = score_everything({"it": generate}, [IMAGE])["it"]
    assert (score.objects, score.found, score.recall, score.masks) == (4, 2, 0.5, 4)
    assert score.mean_iou == pytest.approx((1 + 0.64 + 0.36 + 0) / 4)
    assert len(score.seconds) == 1


def test_generators_take_turns_on_each_image() -> None:
    order: list[tuple[str, int]] = []

    def named(name: str) -> object:
        def generate(pixels: RgbArray) -> Sequence[Rle]:
            order.append((name, pixels.shape[1]))
            return [] if name == "none" else OBJECTS

        return generate

    wide = KnownImage(np.zeros((20, 101, 3), np.uint8), ())
    generators = {"all": named("all"), "none": named("none")}
    scores = score_everything(generators, [IMAGE, wide])  # type: ignore[arg-type]
    # Who goes first changes: a cold cache or a busy minute is nobody's in particular.
    assert order == [("all", 100), ("none", 100), ("none", 101), ("all", 101)]
    assert (scores["all"].recall, scores["none"].recall) == (1, 0)
    assert [len(scores[name].seconds) for name in generators] == [2, 2]


def test_drawn_images_are_the_same_for_the_same_seeds() -> None:
    first, again = drawn_images([1, 2], 160, 128), drawn_images([1, 2], 160, 128)
    assert len(first) == 4
    assert all(image.objects for image in first)
    for one, other in zip(first, again, strict=True):
        assert np.array_equal(one.pixels, other.pixels)
        assert one.objects == other.objects
