"""Errors reach the caller's process as what they were."""

# ruff: noqa: S301 (Ray pickles between its own processes; what is loaded was made here)

from __future__ import annotations

import pickle
import subprocess
import sys
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ray import cloudpickle

import serve_app.client  # noqa: F401 (its errors count as well)
from serve_app.core import errors
from serve_app.core.errors import SamServeError


def kinds(base: type[SamServeError] = SamServeError) -> Iterator[type[SamServeError]]:
    if not base.__name__.startswith("_"):  # those that never leave a process as they are
        yield base
    for kind in base.__subclasses__():
        if kind.__module__.startswith("serve_app."):
            yield from kinds(kind)


ALL = sorted(set(kinds()), key=lambda kind: kind.__name__)
texts = st.text(max_size=60)


def facts(error: SamServeError) -> tuple[object, ...]:
    return type(error), error.message, error.field, error.body(), str(error), error.args


@pytest.mark.parametrize("kind", ALL, ids=lambda kind: kind.__name__)
@given(message=texts, field=st.none() | texts)
def test_an_error_survives_pickling(
    kind: type[SamServeError], message: str, field: str | None
) -> None:
    error = kind(message, field)
    for protocol in range(2, pickle.HIGHEST_PROTOCOL + 1):
        assert facts(pickle.loads(pickle.dumps(error, protocol))) == facts(error)
    assert facts(cloudpickle.loads(cloudpickle.dumps(error))) == facts(error)
    # Told at another place it is still the same, and still travels.
    moved = error.at("prompts[3]")
    assert facts(pickle.loads(pickle.dumps(moved))) == facts(moved)
    assert type(moved) is kind


ECHO = """
import pickle, sys
errors = pickle.load(sys.stdin.buffer)
told = [(type(e).__name__, e.code, e.status, e.message, e.field) for e in errors]
sys.stdout.buffer.write(pickle.dumps((told, errors)))
"""


def test_errors_survive_the_way_to_another_process_and_back() -> None:
    sent = [kind(f"a sentence of {kind.code}", "prompts[0].box") for kind in ALL]
    done = subprocess.run(
        [sys.executable, "-c", ECHO],
        input=pickle.dumps(sent),
        capture_output=True,
        check=True,
        timeout=300,
    )
    told, back = pickle.loads(done.stdout)
    assert told == [(type(e).__name__, e.code, e.status, e.message, e.field) for e in sent]
    assert [facts(e) for e in back] == [facts(e) for e in sent]


def test_no_two_errors_share_a_code() -> None:
    served = [kind for kind in ALL if kind.__module__ == errors.__name__]
    codes = [kind.code for kind in served if kind is not SamServeError]
    assert len(set(codes)) == len(codes)
