"""Measured profiles in the reports of the ingress.

Serve passes only floats from replicas to the scaling policy, so a table of pass times becomes one
figure for each batch size.  The ingress reports those of all variants: it always has a replica,
while a variant may never have had one.  The policy reads no files: on any host it uses the
profiles that the builder resolved.  Pure.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping

from serve_app.core.measurements import Profile
from serve_app.scaling.demand import measured

_TABLES = "encode_ms", "decode_ms"
_MAX_BATCH = 4096


def profile_report(profiles: Mapping[str, Profile]) -> dict[str, float]:
    """Figures for ``record_autoscaling_stats``, by profile of a variant."""
    found: dict[str, float] = {}
    for variant, profile in profiles.items():
        found[f"{variant}/cold_start_s"] = float(profile.cold_start_s)
        for table in _TABLES:
            for items, ms in getattr(profile, table).items():
                found[f"{variant}/{table}/{items}"] = float(ms)
    return found


def read_profiles(figures: Mapping[str, float]) -> dict[str, Profile]:
    """The profiles in a report by variant, without incomplete and implausible ones."""
    tables: dict[str, dict[int, float]] = defaultdict(dict)
    for name, value in figures.items():
        table, _, items = name.rpartition("/")
        ms = measured(value)
        if ms and items.isdecimal() and 0 < int(items) <= _MAX_BATCH:
            tables[table][int(items)] = ms
    found = {}
    for name, value in figures.items():
        variant = name.removesuffix("/cold_start_s")
        encode_ms, decode_ms = (tables[f"{variant}/{table}"] for table in _TABLES)
        cold_start_s = measured(value)
        if variant != name and encode_ms and decode_ms and cold_start_s is not None:
            found[variant] = Profile(encode_ms, decode_ms, cold_start_s=cold_start_s)
    return found
