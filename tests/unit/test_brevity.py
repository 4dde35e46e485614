"""What a failing test of this suite prints is bounded; see `tests.brevity`."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from ..brevity import LINES, WIDTH, shorten

TRACEBACK = [*(f"file.py:{n}: in deeper {'x' * 999}" for n in range(800)), "E  ValueError: no"]
SECTIONS = [
    (f"Captured {stream} {when}", "GET /readyz 200\n" * 800)
    for when in ("setup", "call")
    for stream in ("stdout", "stderr", "log")
]


def _printed(item: Any, when: Any) -> list[str]:
    """The lines of a report, with its title and its line in the summary."""
    report = pytest.TestReport(
        item.nodeid,
        ("file.py", 1, "test"),
        {},
        "failed",
        "\n".join(TRACEBACK),
        when,
        list(SECTIONS),
    )
    shorten(item, report)
    parts = ["title", report.longreprtext, *(f"{t}\n{c}" for t, c in report.sections), "summary"]
    return "\n".join(parts).splitlines()


def test_a_failing_test_prints_one_screen_its_failing_teardown_included() -> None:
    item = SimpleNamespace(nodeid="test", stash=pytest.Stash())
    first, again = _printed(item, "call"), _printed(item, "teardown")
    assert len(first) + len(again) <= LINES
    for lines in (first, again):
        assert max(map(len, lines)) < WIDTH + 40
        assert "file.py:0" in lines[1]
        assert "E  ValueError: no" in lines
    assert "GET /readyz 200" in first
    assert "GET /readyz 200" not in again


def test_a_short_report_stays_as_it_is() -> None:
    item: Any = SimpleNamespace(stash=pytest.Stash())
    report = pytest.TestReport("id", ("f", 1, "t"), {}, "failed", "E  no", "call", [("log", "a")])
    shorten(item, report)
    assert (report.longrepr, report.sections) == ("E  no", [("log", "a")])
