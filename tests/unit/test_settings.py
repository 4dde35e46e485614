"""A setting that nobody knows refuses the whole configuration, wherever it stands."""

from __future__ import annotations

import copy
import inspect
import logging
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from serve_app.core import settings
from serve_app.core.limits import Limits
from serve_app.core.settings import GraphSettings, Replicas, Strict

FULL = GraphSettings.model_validate(
    {
        "variants": {"fast": {"model": "vit_t"}},
        "security": {"api_keys": [{"name": "a", "sha256": "0" * 64}]},
    }
)


def places(value: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[Any, BaseModel]]:
    """Every model inside a model, with the way to it."""
    if isinstance(value, BaseModel):
        yield path, value
        for name in type(value).model_fields:
            yield from places(getattr(value, name), (*path, name))
    elif isinstance(value, dict):
        for name, inner in value.items():
            yield from places(inner, (*path, name))
    elif isinstance(value, tuple):
        for index, inner in enumerate(value):
            yield from places(inner, (*path, index))


PLACES = dict(places(FULL))


def given_plainly() -> dict[str, Any]:
    """The settings as a configuration holds them."""
    return copy.deepcopy(FULL.model_dump(mode="json"))


def test_every_kind_of_settings_is_somewhere_in_the_graph() -> None:
    """Else the test below would not see it."""
    seen = {type(model) for model in PLACES.values()} | {Replicas, Strict, settings.Rate}
    known = {
        kind
        for _, kind in inspect.getmembers(settings, inspect.isclass)
        if issubclass(kind, BaseModel) and kind is not BaseModel
    }
    assert known - seen == set()
    assert Limits in seen


def test_the_settings_as_they_are_pass() -> None:
    assert GraphSettings.model_validate(given_plainly()) == FULL


@pytest.mark.parametrize("path", PLACES, ids=lambda path: ".".join(map(str, path)) or "top")
@hypothesis_settings(max_examples=20)
@given(name=st.text(min_size=1, max_size=20), value=st.none() | st.booleans() | st.integers())
def test_an_unknown_key_is_refused_at_every_level(
    path: tuple[str | int, ...], name: str, value: Any
) -> None:
    name += "_"  # no field ends so
    content = given_plainly()
    inner: Any = content
    for part in path:
        inner = inner[part]
    inner[name] = value
    with pytest.raises(ValidationError) as caught:
        GraphSettings.model_validate(content)
    # A union (text: settings or null) may add its other branch to the place.
    faults = {error["loc"]: error for error in caught.value.errors()}
    if (*path, name) in faults:
        assert faults[*path, name]["type"] == "extra_forbidden"
    else:  # it is so near to a key that this is named instead
        assert "is not a key here: did you mean" in faults[path]["msg"]


@pytest.mark.parametrize("path", PLACES, ids=lambda path: ".".join(map(str, path)) or "top")
def test_settings_do_not_change(path: tuple[str | int, ...]) -> None:
    model = PLACES[path]
    name = next(iter(type(model).model_fields))
    with pytest.raises(ValidationError):
        setattr(model, name, getattr(model, name))


RENAMED = {
    "stuck_after_s": ({"proposals": {"stuck_after_s": 7}}, {"proposals": {"max_pass_s": 7}}),
    "cascade_wakes": (
        {"router": {"cascade_wakes": False}},
        {"router": {"cascade_scales_from_zero": False}},
    ),
    "redis_rest_s": (
        {"cache": {"redis_rest_s": 5}},
        {"cache": {"redis_probe_interval_s": 5}},
    ),
    "ledger": ({"ledger": {"trust_host": True}}, {"measurements": {"trust_host": True}}),
    "quantised": (
        {"quantised": {"least_speedup": 2}},
        {"quantized": {"least_speedup": 2}},
    ),
}


def test_every_renamed_key_is_tested() -> None:
    assert {key for kind in _all_kinds(Strict) for key in kind.renamed_keys} == RENAMED.keys()


def _all_kinds(kind: type[Strict]) -> Iterator[type[Strict]]:
    yield kind
    for below in kind.__subclasses__():
        if below.__module__.startswith("serve_app.core.settings"):
            yield from _all_kinds(below)


@pytest.mark.parametrize("name", RENAMED)
def test_a_former_name_works_with_a_warning_that_names_the_new_one(
    name: str, caplog: pytest.LogCaptureFixture
) -> None:
    old, new = RENAMED[name]
    with caplog.at_level(logging.WARNING, "serve_app"):
        assert GraphSettings.model_validate(old) == GraphSettings.model_validate(new)
        (warning,) = [r.getMessage() for r in caplog.records]
    assert name in warning
    (section,) = new.values()
    assert next(iter(new if name in old else section)) in warning


def test_both_names_of_a_key_are_rejected() -> None:
    with pytest.raises(ValidationError, match="former name of measurements"):
        GraphSettings.model_validate({"ledger": {}, "measurements": {}})
