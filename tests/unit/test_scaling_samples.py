"""From samples of any depth to 8 bits: the plain rule, whatever the layout of the picture."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from serve_app.images import scaling
from serve_app.images.scaling import scaled_to_8_bits


@settings(max_examples=200, deadline=None)
@given(
    height=st.integers(1, 300),
    width=st.integers(1, 300),
    most=st.integers(500, 3_000),
    period=st.tuples(st.integers(1, 4), st.integers(1, 4)),
)
def test_pixels_of_the_sample_lie_everywhere(
    height: int, width: int, most: int, period: tuple[int, int]
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scaling, "_BLOCK", 700)
        rows, columns = np.concatenate([*scaling._spread(height, width, most)], axis=1)
    assert min(most, height * width) / 2 <= len(rows) <= most
    places = rows * width + columns
    step = -(-height * width // most)
    assert (places // step == np.arange(len(places))).all()
    if len(rows) == height * width:
        return
    # Of a pattern that repeats, each part is seen as often as it occurs.
    parts = (np.arange(height)[:, None] % period[0]) * period[1] + np.arange(width) % period[1]
    whole = np.bincount(parts.ravel(), minlength=16) / parts.size
    seen = np.bincount(parts[rows, columns], minlength=16) / len(rows)
    assert np.abs(whole - seen).max() < 0.1


@pytest.mark.parametrize("divisor", range(1, 14))
@pytest.mark.parametrize("view", ["as stored", "turned", "every second"])
def test_no_channel_and_no_column_is_left_out(
    divisor: int, view: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever share is sampled, the stretch is close to that of all samples."""
    height, width = 90, 120
    x = np.arange(width)
    ramp = np.linspace(0, 1, height)[:, None] * np.ones(width)
    red, green, blue = 100 * ramp, 5_000 + 4_000 * ramp, np.where(x % 6 == 5, 60_000, 20_000) * ramp
    samples = np.stack([red, green, blue], -1).astype(np.uint16)
    samples = {
        "as stored": samples,
        "turned": samples.transpose(1, 0, 2),
        "every second": np.repeat(samples, 2, axis=1)[:, ::2],
    }[view]
    whole = scaled_to_8_bits(samples)
    monkeypatch.setattr(scaling, "_SAMPLE", samples.size // divisor)
    assert np.abs(scaled_to_8_bits(samples).astype(int) - whole).max() <= 12


@pytest.mark.parametrize("dtype", ["u2", "i4", "f4"])
def test_bright_spots_that_the_sample_misses(dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scaling, "_SAMPLE", 100)
    monkeypatch.setattr(scaling, "_BLOCK", 700)
    samples = np.full((60, 70, 1), 40, dtype)
    samples[51, 13], samples[7, 66] = 90, 140
    found = scaled_to_8_bits(samples)
    assert (found[51, 13, 0], found[7, 66, 0], found[0, 0, 0]) == (128, 255, 0)


def with_invalid(dtype: str) -> tuple[NDArray[Any], NDArray[np.bool_], float | None]:
    """A ramp with invalid samples, where they are, and its nodata value."""
    samples = np.arange(400).reshape(20, 20, 1).astype(dtype) + 100
    invalid = np.zeros(samples.shape, np.bool_)
    places: dict[tuple[int, int], float] = {(0, n): 31_000 for n in range(9)}
    if samples.dtype.kind == "f":
        places |= {(3, 3): np.nan, (4, 4): np.inf, (5, 5): -np.inf}
    for place, value in places.items():
        samples[place] = value
        invalid[place] = True
    return samples, invalid, 31_000


@pytest.mark.parametrize("dtype", ["i2", "u2", "f4", "f8"])
@pytest.mark.parametrize("negative", [False, True])
def test_what_is_not_valid_is_black(dtype: str, negative: bool) -> None:
    samples, invalid, nodata = with_invalid(dtype)
    found = scaled_to_8_bits(samples, nodata=nodata, negative=negative)
    assert (found[invalid] == 0).all()
    valid = found[~invalid].astype(int)
    assert (np.diff(valid) * (-1 if negative else 1) >= 0).all()
    assert (valid.min(), valid.max()) == (0, 255)


def test_a_negative_is_the_other_inverted() -> None:
    samples = np.random.default_rng(0).integers(0, 9_999, (30, 40, 3)).astype(np.uint16)
    both = [scaled_to_8_bits(samples, "channel", negative=n).astype(int) for n in (False, True)]
    assert np.abs(both[0] + both[1] - 255).max() <= 1
    constant = np.full((3, 4, 1), 7, np.uint16)
    assert (scaled_to_8_bits(constant, negative=True) == 255).all()
