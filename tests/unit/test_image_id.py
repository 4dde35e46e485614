from __future__ import annotations

import numpy as np
import pytest

from serve_app.core.errors import UnknownImage
from serve_app.core.request import image_id, parse_image_id


def test_the_shape_is_part_of_the_name() -> None:
    flat = np.random.default_rng(0).integers(0, 256, 30 * 100 * 3, dtype=np.uint8)
    tall = image_id(flat.reshape(100, 30, 3))
    wide = image_id(flat.reshape(30, 100, 3))
    assert tall.startswith("30x100-")
    assert wide.startswith("100x30-")
    # Not the visible size alone: the hash itself frames the shape.
    assert tall.split("-")[1] != wide.split("-")[1]


def test_memory_layout_is_not_part_of_the_name_but_each_pixel_is() -> None:
    pixels = np.random.default_rng(1).integers(0, 256, (7, 5, 3), dtype=np.uint8)
    assert image_id(np.asfortranarray(pixels)) == image_id(pixels)
    changed = pixels.copy()
    changed[6, 4, 2] ^= 1
    assert image_id(changed) != image_id(pixels)


def test_parse_gives_back_the_size() -> None:
    assert parse_image_id(image_id(np.zeros((30, 100, 3), np.uint8))) == (100, 30)


GOOD = "a" * 64


@pytest.mark.parametrize(
    "text",
    [
        "",
        GOOD,
        f"030x100-{GOOD}",
        f"30x0-{GOOD}",
        f"-30x100-{GOOD}",
        f"+30x100-{GOOD}",
        f"30x100-{GOOD.upper()}",
        f"30x100-{GOOD[1:]}",
        f"30x100-{GOOD}a",
        f"30x100-{GOOD}\n",
        f" 30x100-{GOOD}",
        f"30x100_{GOOD}",
        f"30X100-{GOOD}",
        f"٣٠x100-{GOOD}",
        f"{'9' * 4000}x1-{GOOD}",
        f"../../30x100-{GOOD}",
        "\0",
    ],
)
def test_only_the_canonical_spelling_is_an_image_id(text: str) -> None:
    with pytest.raises(UnknownImage) as caught:
        parse_image_id(text)
    assert text[:20] == "" or text[:20] not in caught.value.message
    assert len(caught.value.message) < 200
