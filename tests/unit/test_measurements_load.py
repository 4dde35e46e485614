"""What of a ledger file is believed, and with which warning the rest is ignored."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from serve_app.core.measurements import MeasurementsFile, VariantMeasurements
from serve_app.core.settings import GraphSettings
from serve_app.profiles.measurements import (
    MAX_BYTES,
    MEASUREMENTS_VARIABLE,
    Measurements,
    load_measurements,
    measurements_path,
)

from .ledger_entries import REGISTRY, entry, ledger, other_host, rule

ROOT = Path(__file__).parents[2]
COMMAND = "python -m serve_app measure"


def graph(path: Path, trust: bool = False, **variants: Any) -> GraphSettings:
    chosen = variants or {"fast": {"model": "small"}}
    return GraphSettings.model_validate(
        {
            "variants": chosen,
            "router": {"default": next(iter(chosen))},
            "measurements": {"path": str(path), "trust_host": trust},
        }
    )


def loaded(tmp_path: Path, content: MeasurementsFile, **variants: Any) -> Measurements:
    path = tmp_path / "ledger.json"
    path.write_text(content.model_dump_json())
    return load_measurements(graph(path, **variants), REGISTRY)


def test_a_ledger_of_this_host_and_these_weights_counts(tmp_path: Path) -> None:
    slow = entry("large", encode_ms={1: {"value": 500.0}}, quality={"box": {"value": 0.1}})
    found = loaded(
        tmp_path,
        ledger({"fast": entry(), "slow": slow, "unconfigured": entry()}),
        fast={"model": "small"},
        slow={"model": "large"},
    )
    assert found.warnings == ()
    assert list(found.entries) == ["fast", "slow"]
    assert found.profiles["fast"].encode_ms == {1: 100.0, 4: 300.0}
    assert found.dominated == {"slow": "fast"}
    assert found.ignored == {}
    assert found.file is not None


def test_without_a_file_one_sentence_names_the_command(tmp_path: Path) -> None:
    for path in (tmp_path / "none.json", tmp_path / "none" / "none.json"):
        found = load_measurements(graph(path), REGISTRY)
        assert found.profiles == {}
        assert len(found.warnings) == 1
        assert COMMAND in found.warnings[0]
        assert found.ignored == {"fast": "not measured"}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"model": "large"}, "model large"),
        ({"weights_hash": "f" * 64}, "weights ffff"),
        ({"preprocessing": "p0"}, "preprocessing p0"),
        ({"device": "cuda"}, "device cuda"),
        ({"dtype": "bfloat16"}, "dtype bfloat16"),
        ({"engine": "compiled"}, "engine compiled"),
        ({"threads": 4}, "threads 4"),
    ],
)
def test_an_entry_of_something_else_is_ignored(
    tmp_path: Path, changes: dict[str, Any], said: str
) -> None:
    content = ledger({"fast": entry(**changes), "other": entry()})
    models = {"fast": {"model": "small"}, "other": {"model": "small"}}
    found = loaded(tmp_path, content, **models)
    assert list(found.entries) == list(found.profiles) == ["other"]
    assert len(found.warnings) == 1
    assert said in found.warnings[0]
    assert "fast" in found.warnings[0]
    assert "ignored" in found.warnings[0]
    assert COMMAND in found.warnings[0]
    assert said in found.ignored["fast"]


def test_a_fused_variant_is_held_against_its_decoders_compute(tmp_path: Path) -> None:
    decoder = {"compute": {"threads": 4}}
    fused = {"model": "small", "layout": "fused", "decoder": decoder}
    content = ledger({"fast": entry(threads=4)})
    assert loaded(tmp_path, content, fast=fused).warnings == ()
    assert loaded(tmp_path, content, fast={**fused, "layout": "split"}).profiles == {}


def test_a_variant_that_was_not_measured_is_told(tmp_path: Path) -> None:
    models = {"fast": {"model": "small"}, "new": {"model": "large"}}
    found = loaded(tmp_path, ledger(), **models)
    assert list(found.profiles) == ["fast"]
    assert found.warnings == (f"there are no figures for new; run '{COMMAND}'",)


def test_a_model_that_is_not_in_the_registry(tmp_path: Path) -> None:
    found = loaded(tmp_path, ledger(), fast={"model": "nowhere"})
    assert "not in the registry" in found.warnings[0]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"cpu": "Abacus 3000"}, "Abacus 3000"),
        ({"cores": 4096}, "4096 cores"),
        ({"gpus": ("Imaginary GPU",)}, "Imaginary GPU"),
    ],
)
def test_another_host_is_ignored_unless_it_is_trusted(
    tmp_path: Path, changes: dict[str, Any], said: str
) -> None:
    path = tmp_path / "ledger.json"
    path.write_text(ledger(host=other_host(**changes)).model_dump_json())
    found = load_measurements(graph(path), REGISTRY)
    assert found.profiles == {}
    assert found.entries == {}
    assert len(found.warnings) == 1
    assert "another host" in found.warnings[0]
    assert said in found.warnings[0]
    trusted = load_measurements(graph(path, trust=True), REGISTRY)
    assert list(trusted.profiles) == ["fast"]
    assert trusted.warnings == ()


def test_rules_of_escalation_count_only_with_both_variants(tmp_path: Path) -> None:
    rules = {"fast>slow": {"box-1": rule()}, "fast>gone": {"box-1": rule()}}
    entries: dict[str, VariantMeasurements] = {"fast": entry(), "slow": entry("large")}
    models = {"fast": {"model": "small"}, "slow": {"model": "large"}}
    found = loaded(tmp_path, ledger(entries, escalation=rules), **models)
    assert list(found.escalation) == ["fast>slow"]
    entries["slow"] = entry("large", threads=9)
    assert loaded(tmp_path, ledger(entries, escalation=rules), **models).escalation == {}


def check_ignored(path: Path) -> Measurements:
    found = load_measurements(graph(path), REGISTRY)
    assert found.profiles == {}
    assert found.file is None
    assert len(found.warnings) == 1
    assert COMMAND in found.warnings[0]
    assert str(path) not in found.warnings[0]
    return found


def test_an_oversized_file_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "ledger.json"
    content = ledger().model_dump_json().encode()
    path.write_bytes(content + b" " * (MAX_BYTES - len(content)))
    assert list(load_measurements(graph(path), REGISTRY).profiles) == ["fast"]
    path.write_bytes(content + b" " * (MAX_BYTES + 1 - len(content)))
    assert "larger than 1 MiB" in check_ignored(path).warnings[0]


def test_what_is_no_plain_file(tmp_path: Path) -> None:
    assert "not a regular file" in check_ignored(tmp_path).warnings[0]
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    assert "not a regular file" in check_ignored(pipe).warnings[0]
    check_ignored(Path("/\0"))


def test_a_file_that_may_not_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "ledger.json"
    path.write_text(ledger().model_dump_json())

    def forbidden(self: Path, *args: Any) -> Any:
        raise PermissionError

    monkeypatch.setattr(Path, "open", forbidden)
    assert "cannot be read" in check_ignored(path).warnings[0]


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"null", b"[]", b'{"format": 1}', b"\xff\xfe", b"[" * 100_000, b"1e999999"],
)
def test_garbage_is_ignored(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "ledger.json"
    path.write_bytes(content)
    assert "are invalid" in check_ignored(path).warnings[0]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=6,
)
VALID = json.loads(ledger().model_dump_json())


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    """A valid ledger in which one place holds something else, or any bytes."""
    if draw(st.booleans()):
        return draw(st.binary(max_size=200))
    content = json.loads(json.dumps(VALID))
    place: Any = content
    while True:
        key = draw(st.sampled_from(sorted(place)))
        if not isinstance(place[key], dict) or not place[key] or draw(st.booleans()):
            break
        place = place[key]
    place[key] = draw(JSON)
    return json.dumps(content).encode()


@given(content=damaged())
@hypothesis_settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_whatever_the_file_holds_nothing_is_raised(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "ledger.json"
    path.write_bytes(content)
    found = load_measurements(graph(path), REGISTRY)
    assert found.profiles.keys() <= {"fast"}
    assert bool(found.warnings) == (not found.profiles)
    assert set(found.ignored) | set(found.profiles) == {"fast"}


def test_where_the_ledger_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv(MEASUREMENTS_VARIABLE, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert measurements_path(GraphSettings()) == tmp_path / "sam-serve" / "ledger.json"
    monkeypatch.setenv(MEASUREMENTS_VARIABLE, "~/mine.json")
    assert measurements_path(GraphSettings()) == Path("~/mine.json").expanduser()
    assert measurements_path(graph(tmp_path / "x")) == tmp_path / "x"
    unknown = graph(Path("~nobody-has-this-name/x"))
    assert "home folder" in load_measurements(unknown, REGISTRY).warnings[0]


def test_reading_a_ledger_loads_no_model_library() -> None:
    heavy = {"torch", "onnxruntime", "cv2", "ray", "segment_anything", "timm"}
    code = (
        f"import sys, serve_app.profiles.measurements\nprint(sorted({heavy!r} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert done.stdout.strip() == "[]"
