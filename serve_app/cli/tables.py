"""Tables as text: Markdown for reports, aligned columns for the terminal."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

Rows = Iterable[Sequence[str]]


def markdown_table(head: Sequence[str], rows: Rows, *, left: int = 1, right: int = 0) -> str:
    """A Markdown table without a final newline.

    Args:
        left: number of first columns that are aligned to the left; the others hold numbers.
        right: number of last columns that are aligned to the left as well.
    """
    numbers = len(head) - left - right
    rule = ["---"] * left + ["---:"] * numbers + ["---"] * right
    lines = [head, rule, *([cell.replace("|", "\\|") for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def text_table(head: Sequence[str], rows: Rows) -> str:
    """Aligned columns with a rule below the head, without a final newline."""
    table = [head, *rows]
    widths = [max(len(row[column]) for row in table) for column in range(len(head))]
    table.insert(1, ["-" * width for width in widths])
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in table
    )
