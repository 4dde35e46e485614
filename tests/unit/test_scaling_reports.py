"""A profile passes through replicas' reports unchanged, and nonsense is rejected."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve_app.core.measurements import Profile
from serve_app.scaling.reports import (
    ReportedProfile,
    decoder_profile,
    encoder_profile,
    read_profile,
)

TABLES = st.dictionaries(st.integers(1, 4096), st.floats(1e-3, 1e6), min_size=1, max_size=6)


@given(encode=TABLES, decode=TABLES, cold_start_s=st.floats(0, 1e6))
def test_a_profile_arrives_as_it_was_measured(
    encode: dict[int, float], decode: dict[int, float], cold_start_s: float
) -> None:
    profile = Profile(encode, decode, cold_start_s=cold_start_s)
    figures = encoder_profile(profile)
    assert all(type(value) is float for value in figures.values())  # Serve accepts nothing else
    busy = {"arrivals_per_s": 3.0, "pass_ms": 7.0, "pass_items": 1.0}
    assert read_profile(figures | busy) == ReportedProfile(encode, cold_start_s)
    split = read_profile(decoder_profile(profile, fused=False))
    assert split == ReportedProfile(decode, cold_start_s)


def test_a_fused_decoder_encodes_one_image_in_each_pass() -> None:
    profile = Profile({2: 90.0}, {1: 10.0, 8: 30.0}, cold_start_s=2.0)
    found = read_profile(decoder_profile(profile, fused=True))
    assert found == ReportedProfile({1: 100.0, 8: 120.0}, 2.0)


def test_without_measurements_nothing_is_reported() -> None:
    assert encoder_profile(None) == decoder_profile(None, fused=True) == {}
    assert read_profile({"arrivals_per_s": 1.0}) is None


@pytest.mark.parametrize(
    "changes",
    [
        {"profile_cold_start_s": math.nan},
        {"profile_cold_start_s": -1.0},
        {"profile_pass_ms_1": 0.0},
        {"profile_pass_ms_1": math.inf},
        {"profile_pass_ms_1": -5.0},
    ],
)
def test_an_implausible_profile_is_ignored(changes: dict[str, Any]) -> None:
    figures = encoder_profile(Profile({1: 10.0}, {1: 1.0}))
    assert read_profile(figures) is not None
    assert read_profile(figures | changes) is None


@pytest.mark.parametrize("size", ["0", "-1", "x", "1.5", "99999", "²"])
def test_an_impossible_batch_size_is_ignored(size: str) -> None:
    figures = encoder_profile(Profile({1: 10.0}, {1: 1.0}))
    assert read_profile(figures | {f"profile_pass_ms_{size}": 1.0}) == read_profile(figures)
