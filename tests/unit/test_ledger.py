"""The ledger's form, the decisions on its figures, its timing, its file and its report."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from serve_app.core import host
from serve_app.core.measurements import (
    Figure,
    MeasurementsFile,
    Profile,
    best_ms_per_item,
    dominated,
    pass_ms,
)
from serve_tools.profiling import memory, write
from serve_tools.profiling.report import interval, markdown
from serve_tools.profiling.timing import duration, interleaved
from serve_tools.profiling.write import merged, write_ledger

from .ledger_entries import entry, ledger, other_host, rule

ENTRY = entry().model_dump(mode="json")


def test_a_ledger_survives_its_file(tmp_path: Path) -> None:
    before = ledger({"fast": entry(), "accurate": entry("large")})
    write_ledger(tmp_path / "new" / "ledger.json", before)
    after = MeasurementsFile.model_validate_json((tmp_path / "new" / "ledger.json").read_bytes())
    assert after == before
    assert after.entries["fast"].encode_ms[4].value == 300.0


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("entries", "fast", "cold_start_s", "value"), 0),
        (("entries", "fast", "cold_start_s", "value"), "NaN"),
        (("entries", "fast", "encode_ms"), {}),
        (("entries", "fast", "encode_ms"), {"0": {"value": 1}}),
        (("entries", "fast", "encode_ms"), {"1": {"value": 1, "low": 2}}),
        (("entries", "fast", "quality", "box", "value"), 1.5),
        (("entries", "fast", "threads"), 0),
        (("entries", "fast", "surprise"), 1),
        (("entries",), {"no name!": ENTRY}),
        (("format",), 2),
        (("host", "cores"), 0),
    ],
)
def test_absurd_figures_are_refused(path: tuple[str, ...], value: Any) -> None:
    content: Any = json.loads(ledger().model_dump_json())
    place = content
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    with pytest.raises(ValidationError):
        MeasurementsFile.model_validate_json(json.dumps(content))


def test_intervals_hold_their_value() -> None:
    Figure(value=1, low=1, high=1)
    with pytest.raises(ValidationError):
        Figure(value=1, low=0.5, high=0.9)


TABLE = {1: 100.0, 4: 280.0, 8: 400.0}


@pytest.mark.parametrize(
    ("items", "expected"),
    [(0, 0.0), (1, 100.0), (2, 160.0), (4, 280.0), (6, 340.0), (8, 400.0), (16, 800.0)],
)
def test_passes_between_and_beyond_the_measured_sizes(items: int, expected: float) -> None:
    assert pass_ms(TABLE, items) == pytest.approx(expected)


def test_a_pass_below_the_smallest_size_takes_as_long_as_that() -> None:
    assert pass_ms({4: 280.0, 8: 400.0}, 2) == 280.0


def test_best_rate_within_the_batch() -> None:
    assert best_ms_per_item(TABLE, 8) == 50.0
    assert best_ms_per_item(TABLE, 2) == 80.0


def profile(ms: float, **quality: float) -> Profile:
    return Profile(encode_ms={1: ms}, decode_ms={1: 1.0}, quality=quality)


def test_dominated_is_slower_and_worse_for_every_kind() -> None:
    profiles = {
        "quick": profile(10, box=0.8, point=0.5),
        "slow": profile(20, box=0.9, point=0.6),
        "waste": profile(30, box=0.7, point=0.4),
        "mixed": profile(30, box=0.95, point=0.4),
    }
    assert set(dominated(profiles)) == {"waste"}
    assert dominated(profiles)["waste"] in ("quick", "slow")


@pytest.mark.parametrize(
    "other",
    [
        profile(10, box=0.8),  # equal
        profile(5, box=0.8),  # quicker, as good
        profile(10, box=0.9),  # better, as slow
        profile(5),  # unmeasured
        profile(5, point=0.9),  # measured on something else
    ],
)
def test_equals_and_unmeasured_variants_dominate_nobody(other: Profile) -> None:
    assert dominated({"a": profile(10, box=0.8), "b": other}) == {}


@settings(deadline=None)
@given(st.lists(st.tuples(st.floats(1, 9), st.floats(0, 1)), min_size=1, max_size=6))
def test_never_all_variants_are_dominated(figures: list[tuple[float, float]]) -> None:
    profiles = {f"v{i}": profile(ms, box=iou) for i, (ms, iou) in enumerate(figures)}
    assert set(dominated(profiles)) < set(profiles)


class Clock:
    """Time that passes only in passes."""

    def __init__(self) -> None:
        self.now = 0.0
        self.order: list[str] = []

    def __call__(self) -> float:
        return self.now

    def takes(self, name: str, *seconds: float) -> Callable[[], None]:
        left = list(seconds)

        def one_pass() -> None:
            self.order.append(name)
            self.now += left.pop(0) if len(left) > 1 else left[0]

        return one_pass


def test_warm_ups_are_not_counted_and_sizes_take_turns() -> None:
    clock = Clock()
    passes = {"a": clock.takes("a", 5, 1), "b": clock.takes("b", 7, 2)}
    times = interleaved(passes, repeats=3, budget_s=100, seed=1, clock=clock)
    assert times == {"a": [1e3] * 3, "b": [2e3] * 3}
    rounds = [clock.order[i : i + 2] for i in range(0, 8, 2)]
    assert all(sorted(names) == ["a", "b"] for names in rounds)
    assert len(set(map(tuple, rounds))) == 2


def test_no_pass_begins_when_its_budget_is_spent() -> None:
    clock = Clock()
    passes = {"quick": clock.takes("quick", 1), "slow": clock.takes("slow", 4)}
    times = interleaved(passes, repeats=9, budget_s=10, seed=0, clock=clock)
    assert len(times["quick"]) == 9
    assert len(times["slow"]) == 2  # and a warm-up: 12 s


def test_a_pass_longer_than_the_budget_is_its_own_figure() -> None:
    clock = Clock()
    times = interleaved({1: clock.takes("x", 30)}, repeats=5, budget_s=10, seed=0, clock=clock)
    assert times == {1: [30e3]}


def test_what_does_not_fit_into_memory_is_left_out() -> None:
    def too_large() -> None:
        raise MemoryError

    passes = {1: lambda: None, 8: too_large}
    times = interleaved(passes, repeats=2, budget_s=1, seed=0, too_large=(MemoryError,))
    assert list(times) == [1]
    with pytest.raises(MemoryError):
        interleaved(passes, repeats=2, budget_s=1, seed=0)


def test_durations_are_medians_with_intervals() -> None:
    assert duration([5.0], 0).model_dump() == {"value": 5.0, "low": None, "high": None}
    found = duration([10.0, 11.0, 12.0, 13.0, 90.0], 0)
    assert found.value == 12.0
    assert found.low == pytest.approx(10, abs=1)
    assert found.high is not None
    assert found.high > 12
    assert duration([0.0, 0.0], 0).value > 0


def test_the_interval_of_a_median_holds_it_as_often_as_it_says() -> None:
    rng = np.random.default_rng(5)
    held = 0
    for seed in range(200):
        found = duration(list(rng.lognormal(3, 0.3, 25)), seed)
        assert found.low is not None
        assert found.high is not None
        held += found.low <= np.exp(3) <= found.high
    assert 0.88 <= held / 200 <= 0.995


def test_a_new_ledger_keeps_what_still_compares() -> None:
    old = ledger(
        {"fast": entry(), "slow": entry("large"), "other": entry()},
        escalation={"fast>slow": {"box-1": rule()}, "other>slow": {"box-1": rule()}},
    )
    new = ledger({"fast": entry(memory_bytes=5)})
    both = merged(new, old)
    assert list(both.entries) == ["fast", "slow", "other"]
    assert both.entries["fast"].memory_bytes == 5
    assert list(both.escalation) == ["other>slow"]
    assert merged(new, None) is new
    assert merged(new, old.model_copy(update={"host": other_host(cores=999)})) is new
    assert merged(new, old.model_copy(update={"versions": {"python": "3.9"}})) is new
    elsewhere = old.data.model_copy(update={"images": 77})
    assert merged(new, old.model_copy(update={"data": elsewhere})) is new


def test_a_write_that_fails_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "ledger.json"
    write_ledger(path, ledger())
    before = path.read_bytes()
    assert stat.S_IMODE(path.stat().st_mode) == 0o644

    def full(descriptor: int) -> None:
        raise OSError("no space")

    monkeypatch.setattr(write.os, "fsync", full)
    with pytest.raises(OSError, match="no space"):
        write_ledger(path, ledger({"fast": entry(memory_bytes=1)}))
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["ledger.json"]


def test_the_report_shows_all_figures() -> None:
    worse = entry("large", encode_ms={1: {"value": 500.0}}, quality={"box": {"value": 0.5}})
    text = markdown(ledger({"fast": entry(), "worse": worse}))
    assert "| fast | 100 (90–120) | 300 |" in text
    assert "| worse | 500 | – |" in text
    assert "0.800 (0.700–0.900)" in text
    assert "**worse is dominated by fast**" in text
    assert interval(None, ".1f") == "–"


def test_the_host_is_told_the_same_twice() -> None:
    here = host.this_host(gpus=False)
    assert here == host.this_host(gpus=False)
    assert here.cpu
    assert 1 <= here.cores <= (os.cpu_count() or 1)
    assert here.gpus == ()


def test_a_container_with_less_time_has_fewer_cores(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    quota = tmp_path / "cpu.max"
    monkeypatch.setattr(host, "_CPU_QUOTA", quota)
    monkeypatch.setattr(host.os, "sched_getaffinity", lambda pid: set(range(8)))
    for text, cores in (("250000 100000", 3), ("max 100000", 8), ("nonsense", 8), ("1 100000", 1)):
        quota.write_text(text)
        assert host.this_host(gpus=False).cores == cores


def test_gpus_are_named_by_the_driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for place, name in (("0000:01:00.0", "NVIDIA A"), ("0000:02:00.0", "NVIDIA B")):
        (tmp_path / place).mkdir()
        text = f"Model: \t\t {name}\nIRQ:   \t 1\n"
        (tmp_path / place / "information").write_text(text)
    monkeypatch.setattr(host, "_GPUS", tmp_path)
    assert host.this_host(gpus=True).gpus == ("NVIDIA A", "NVIDIA B")
    assert host.this_host(gpus=False).gpus == ()


def test_memory_is_that_of_this_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert 2**20 < memory.held_bytes() <= memory.peak_bytes() * 1.05
    before = memory.peak_bytes()
    block = np.ones(64 * 2**20, np.uint8)
    assert memory.held_bytes() > 60 * 2**20
    assert memory.peak_bytes() >= before
    del block
    monkeypatch.setattr(memory, "_PROC", tmp_path)
    assert memory.held_bytes() == memory.peak_bytes() > 2**20
