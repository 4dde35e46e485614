"""Profiles pass through the ingress's reports unchanged, and nonsense is rejected."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve_app.core.measurements import Profile
from serve_app.scaling.reports import profile_report, read_profiles

TABLES = st.dictionaries(st.integers(1, 4096), st.floats(1e-3, 1e6), min_size=1, max_size=6)
PROFILES = st.builds(Profile, TABLES, TABLES, cold_start_s=st.floats(0, 1e6))
NAMES = st.from_regex(r"[a-z0-9][a-z0-9_.-]{0,31}", fullmatch=True)
ONE = {"fast": Profile({1: 10.0}, {1: 1.0}, cold_start_s=2.0)}


@given(profiles=st.dictionaries(NAMES, PROFILES, max_size=3))
def test_profiles_arrive_as_they_were_measured(profiles: dict[str, Profile]) -> None:
    figures = profile_report(profiles)
    assert all(type(value) is float for value in figures.values())  # Serve accepts nothing else
    assert read_profiles(figures | {"arrivals_per_s": 3.0}) == profiles


@pytest.mark.parametrize(
    "changes",
    [
        {"fast/cold_start_s": math.nan},
        {"fast/cold_start_s": -1.0},
        {"fast/encode_ms/1": 0.0},
        {"fast/decode_ms/1": math.inf},
        {"fast/encode_ms/1": -5.0},
    ],
)
def test_an_implausible_profile_is_ignored(changes: dict[str, float]) -> None:
    figures = profile_report(ONE)
    assert read_profiles(figures) == ONE
    assert read_profiles(figures | changes) == {}


@pytest.mark.parametrize("size", ["0", "-1", "x", "1.5", "99999", "²", ""])
def test_an_impossible_batch_size_is_ignored(size: str) -> None:
    assert read_profiles(profile_report(ONE) | {f"fast/encode_ms/{size}": 1.0}) == ONE
