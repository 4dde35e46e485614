"""A setting that nobody knows refuses the whole configuration, wherever it stands."""

from __future__ import annotations

import copy
import inspect
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
    told = [error["loc"] for error in caught.value.errors() if error["type"] == "extra_forbidden"]
    assert (*path, name) in told


@pytest.mark.parametrize("path", PLACES, ids=lambda path: ".".join(map(str, path)) or "top")
def test_settings_do_not_change(path: tuple[str | int, ...]) -> None:
    model = PLACES[path]
    name = next(iter(type(model).model_fields))
    with pytest.raises(ValidationError):
        setattr(model, name, getattr(model, name))
