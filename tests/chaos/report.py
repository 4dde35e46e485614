"""What was measured, held against its bound, as one table."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class Row:
    """One figure.

    Attributes:
        item: the number of the plan's item and a name.
        held: whether the bound was kept; None: told for information.
    """

    item: str
    measure: str
    value: str
    bound: str
    held: bool | None


@dataclass
class Report:
    """All rows of a run, told as they come."""

    rows: list[Row] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def add(
        self, item: str, measure: str, value: float | str, bound: str = "", held: bool | None = None
    ) -> None:
        text = value if isinstance(value, str) else _with(value, "")
        row = Row(item, measure, text, bound, held)
        self.rows.append(row)
        print(_line(row), flush=True)

    def at_most(self, item: str, measure: str, value: float, bound: float, unit: str = "") -> None:
        """NaN breaks every bound."""
        self.add(item, measure, _with(value, unit), f"≤ {_with(bound, unit)}", value <= bound)

    def at_least(self, item: str, measure: str, value: float, bound: float, unit: str = "") -> None:
        self.add(item, measure, _with(value, unit), f"≥ {_with(bound, unit)}", value >= bound)

    def note(self, text: str) -> None:
        """Something to be printed beneath the table."""
        self.notes.append(text)
        print(text, flush=True)

    @property
    def broken(self) -> list[Row]:
        return [row for row in self.rows if row.held is False]

    def markdown(self) -> str:
        lines = ["| item | measure | value | bound | held |", "|--|--|--:|--:|--|"]
        lines += [_line(row) for row in self.rows]
        return "\n".join([*lines, "", *self.notes]) + "\n"

    def finish(self, out: Path | None) -> int:
        """Print everything once more, write it, and answer an exit status."""
        print("\n" + self.markdown())
        if out is not None:
            out.parent.mkdir(parents=True, exist_ok=True)
            out.write_text(self.markdown(), encoding="utf-8")
        print(f"{len(self.broken)} of {len(self.rows)} figures beyond their bounds")
        return 1 if self.broken else 0


Part = Callable[[Report, bool], None]
"""A module's ``run``: adds its rows; the flag asks for its quick form."""


def _with(value: float, unit: str) -> str:
    figures = f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return f"{figures} {unit}".rstrip()


def _line(row: Row) -> str:
    held = "" if row.held is None else ("yes" if row.held else "**NO**")
    return f"| {row.item} | {row.measure} | {row.value} | {row.bound} | {held} |"
