"""docs/front.md names every setting with its default, and every answer of the front's own."""

from __future__ import annotations

from pathlib import Path

import pytest

from serve_app.edge import answers
from serve_app.edge.answers import Answer
from serve_app.edge.settings import FrontSettings

TEXT = (Path(__file__).resolve().parents[2] / "docs" / "front.md").read_text("utf-8")
OWN = [a for a in vars(answers).values() if isinstance(a, Answer)] + [answers.too_large(1)]


@pytest.mark.parametrize("name", FrontSettings.model_fields)
def test_every_setting_is_documented_with_its_default(name: str) -> None:
    value = getattr(FrontSettings(), name)
    if value is None or value == ():
        told = "none"
    elif isinstance(value, bool):
        told = str(value).lower()
    elif isinstance(value, tuple):
        told = ", ".join(f"`{v}`" if v.startswith("/") else v for v in value)
    else:
        told = f"{value:g}" if isinstance(value, float) else str(value)
    assert f"| `{name}` | {told} |" in TEXT


@pytest.mark.parametrize("answer", OWN, ids=lambda a: a.code)
def test_every_answer_is_documented(answer: Answer) -> None:
    assert f"| {answer.status} | `{answer.code}`" in TEXT


def test_every_answer_can_be_written_into_a_configuration() -> None:
    for answer in OWN:
        assert not {"'", "%", "\n"} & set(answer.body("x")), answer
