"""The command line: one module for each command, with ``add_arguments`` and ``run``.

A module imports what is slow to import inside its functions, so that ``--help`` stays quick.
"""

from __future__ import annotations

import sys


class CommandError(Exception):
    """A command failed; printed as one message, exit code 1."""


def natural(text: str) -> int:
    """An integer of at least 0, for `argparse`."""
    value = int(text)
    if value < 0:
        raise ValueError(text)
    return value


def positive(text: str) -> int:
    """An integer of at least 1, for `argparse`."""
    value = int(text)
    if value < 1:
        raise ValueError(text)
    return value


def log(text: str) -> None:
    """Print a line of progress, a note or a warning to stderr."""
    print(text, file=sys.stderr, flush=True)
