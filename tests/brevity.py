"""What a failing test prints: the beginning and the end of it, on one screen."""

from __future__ import annotations

import pytest
from _pytest._code.code import TerminalRepr
from _pytest._io import TerminalWriter

LINES = 60
"""That one test prints at most, with its title, the titles of its parts and its summary."""

WIDTH = 200
_TRACEBACK, _CAPTURED, _SECTIONS, _AGAIN = 30, 12, 4, 8
_SPENT = pytest.StashKey[bool]()


class ShortRepr(TerminalRepr):
    """What is left of a traceback.

    Attributes:
        reprcrash: of the whole one: its first line is in the summary.
    """

    def __init__(self, text: str, whole: object) -> None:
        self._text = text
        self.reprcrash = getattr(whole, "reprcrash", None)

    def toterminal(self, tw: TerminalWriter) -> None:
        tw.line(self._text)


def shorten(item: pytest.Item, report: pytest.TestReport) -> None:
    """Leave out the middle of a long traceback, and all but the end of what was captured.

    A test that has failed already, and fails again at its teardown, prints only a few lines more.
    """
    again = item.stash.get(_SPENT, False)
    item.stash[_SPENT] = True
    text = report.longreprtext
    short = middle_left_out(text, _AGAIN if again else _TRACEBACK)
    if short != text:
        report.longrepr = ShortRepr(short, report.longrepr)
    report.sections = [] if again else ends(report.sections)


def middle_left_out(text: str, most: int) -> str:
    """The first third and the last two thirds of so many lines, each of bounded width."""
    lines = text.splitlines()
    if len(lines) > most:
        head = most // 3
        tail = most - head - 1
        lines = [*lines[:head], f"... {len(lines) - most + 1} lines ...", *lines[-tail:]]
    return "\n".join(map(_cut, lines))


def ends(sections: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """The last lines of the last sections, all of them together no more than a few."""
    kept = sections[-_SECTIONS:]
    most = _CAPTURED // max(1, len(kept))
    found = []
    for title, content in kept:
        lines = content.splitlines()
        if len(lines) > most:
            title = f"{title}, the last of {len(lines)} lines"
        found.append((title, "\n".join(map(_cut, lines[-most:]))))
    return found


def _cut(line: str) -> str:
    return line if len(line) <= WIDTH else f"{line[:WIDTH]}... ({len(line)} characters)"
