"""The command line: one module a command, each with ``add_parser`` and functions that run it.

A module imports what is heavy inside its functions, so that ``--help`` stays quick.
"""

from __future__ import annotations


class CommandError(Exception):
    """A command cannot do what was asked; printed as one message, exit code 1."""


def natural(text: str) -> int:
    """A whole number of at least 0, for `argparse`."""
    value = int(text)
    if value < 0:
        raise ValueError(text)
    return value


def positive(text: str) -> int:
    """A whole number of at least 1, for `argparse`."""
    value = int(text)
    if value < 1:
        raise ValueError(text)
    return value
