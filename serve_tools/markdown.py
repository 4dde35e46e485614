"""Markdown tables for reports."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def markdown_table(
    head: Sequence[str], rows: Iterable[Sequence[str]], *, left: int = 1, right: int = 0
) -> str:
    """A Markdown table without a final newline.

    Args:
        left: number of first columns that are aligned to the left; the others hold numbers.
        right: number of last columns that are aligned to the left as well.
    """
    numbers = len(head) - left - right
    rule = ["---"] * left + ["---:"] * numbers + ["---"] * right
    lines = [head, rule, *([cell.replace("|", "\\|") for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
