"""A variant's measured profile in the reports of its replicas.

Serve passes only floats from replicas to the scaling policy, so a table of pass times becomes one
figure for each batch size.  The policy reads no files: on any host it uses the profile that the
builder resolved.  Pure.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from serve_app.core.measurements import Profile, pass_ms
from serve_app.scaling.demand import measured

_BY_SIZE = "profile_pass_ms_"
_COLD_START_S = "profile_cold_start_s"
_MAX_BATCH = 4096


@dataclass(frozen=True, slots=True)
class ReportedProfile:
    """The profile of one pool: milliseconds of a pass by items in it, and the cold start."""

    pass_ms: Mapping[int, float]
    cold_start_s: float


def encoder_profile(profile: Profile | None) -> dict[str, float]:
    """Figures for the reports of a variant's encoder replicas; empty if it was not measured."""
    return {} if profile is None else _figures(profile.encode_ms, profile.cold_start_s)


def decoder_profile(profile: Profile | None, *, fused: bool) -> dict[str, float]:
    """The same for decoder replicas; if fused, each pass includes encoding one image."""
    if profile is None:
        return {}
    image_ms = pass_ms(profile.encode_ms, 1) if fused else 0.0
    table = {items: image_ms + ms for items, ms in profile.decode_ms.items()}
    return _figures(table, profile.cold_start_s)


def _figures(table: Mapping[int, float], cold_start_s: float) -> dict[str, float]:
    passes = {f"{_BY_SIZE}{items}": float(ms) for items, ms in table.items()}
    return {**passes, _COLD_START_S: float(cold_start_s)}


def read_profile(figures: Mapping[str, float]) -> ReportedProfile | None:
    """The profile in a replica's report or the mean of several; None: none or implausible."""
    table: dict[int, float] = {}
    for name, value in figures.items():
        size, ms = name.removeprefix(_BY_SIZE), measured(value)
        if size != name and size.isdecimal() and 0 < int(size) <= _MAX_BATCH and ms:
            table[int(size)] = ms
    cold_start_s = measured(figures.get(_COLD_START_S))
    if not table or cold_start_s is None:
        return None
    return ReportedProfile(table, cold_start_s)
