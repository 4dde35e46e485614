"""Documents, code comments and messages use the field's words; `tests.prose` counts the others."""

from __future__ import annotations

import pytest

from .. import prose

DOCUMENT_LIMIT = 0.5
"""Uses per 1,000 words; ray.serve and httpx have 0 to 0.3."""

CODE_LIMIT = 0.6
"""As `DOCUMENT_LIMIT`, for code."""


@pytest.fixture(scope="module")
def documents() -> prose.Count:
    return prose.total(prose.documents().values())


@pytest.fixture(scope="module")
def code() -> prose.Count:
    return prose.total(prose.code().values())


@pytest.mark.parametrize("family", prose.FAMILIES)
def test_documents_use_the_words_of_the_field(documents: prose.Count, family: str) -> None:
    assert documents.per_thousand(family) <= DOCUMENT_LIMIT


@pytest.mark.parametrize("family", prose.FAMILIES)
def test_code_uses_the_words_of_the_field(code: prose.Count, family: str) -> None:
    assert code.per_thousand(family) <= CODE_LIMIT


SOURCE = '''
"""It answers whoever asks; `answer` and answer_s are names."""
# Told twice.
raise ValueError(f"nobody can tell {answer} what is wrong")
key = "answer"
'''


def test_docstrings_comments_and_messages_are_counted_but_names_are_not() -> None:
    count = prose.Count()
    for text in prose.python(SOURCE):
        count.add(text)
    assert count.uses == {"answers": 1, "who": 1, "asks": 1, "tells": 2}
    assert count.words == 7 + 2 + 6


def test_code_and_link_targets_of_a_page_are_not_prose() -> None:
    count = prose.Count()
    for text in prose.markdown("Text [answers](who/asks.md) `told`\n```\nwho asks\n```\nwhose?\n"):
        count.add(text)
    assert count.uses == {"answers": 1, "who": 1}
    assert count.words == 3


def test_comments_and_text_values_of_yaml_are_prose_but_keys_are_not() -> None:
    count = prose.Count()
    for text in prose.yaml_file("answer: Ask whoever answers.  # who\n"):
        count.add(text)
    assert count.uses == {"asks": 1, "who": 2, "answers": 1}
