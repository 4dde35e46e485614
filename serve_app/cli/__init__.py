"""The command line: one module for each command, with ``add_arguments`` and ``run``.

A module is imported when its command is called, so that the list of commands appears quickly.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence


class CommandError(Exception):
    """A command failed; printed as one message, exit code 1."""


def positive(text: str) -> int:
    """An integer of at least 1, for `argparse`."""
    value = int(text)
    if value < 1:
        raise ValueError(text)
    return value


def log(text: str) -> None:
    """Print a line of progress, a note or a warning to stderr."""
    print(text, file=sys.stderr, flush=True)


def text_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Aligned columns with a rule below the head, without a final newline."""
    table = [head, *rows]
    widths = [max(len(row[column]) for row in table) for column in range(len(head))]
    table.insert(1, ["-" * width for width in widths])
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in table
    )
