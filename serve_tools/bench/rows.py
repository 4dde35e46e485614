"""Results of a benchmark: figures of systems that did the same work, round by round."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from pydantic import Field

from serve_app.core.settings import Strict


class Row(Strict):
    """The figure of one system for one case.

    Attributes:
        case: the work, such as ``32 prompts``; rows of a case are compared with each other.
        system: name of the measured system.
        ours: whether it is this project's; the other rows of a case are compared with the first
            such row.
        unit: of the figures, such as ``ms a prompt``.
        higher_is_better: for throughput and recall.
        rounds: one figure of each round, in the rounds' order.
        floor: the best that the machine's arithmetic allows, in the same unit.
        dominates: what takes most of the time, as measured.
        details: further figures by name.
    """

    case: str
    system: str
    ours: bool = False
    unit: str
    higher_is_better: bool = False
    rounds: tuple[float, ...] = Field(min_length=1)
    floor: float | None = None
    dominates: str = ""
    details: dict[str, float] = Field(default_factory=dict)

    @property
    def figure(self) -> Spread:
        return spread(self.rounds)

    @property
    def of_floor(self) -> float | None:
        """The share (0-1) of the machine's arithmetic peak."""
        if self.floor is None:
            return None
        share = self.figure.median / self.floor
        return share if self.higher_is_better else 1 / share


class Section(Strict):
    """One question and its rows.

    Attributes:
        key: its letter on the command line.
        at: when it was run, ISO 8601 in UTC.
        seconds: that it took.
        notes: what a reader must know of this run.
    """

    key: str
    title: str
    at: str = ""
    seconds: float = 0.0
    quick: bool = False
    rows: tuple[Row, ...] = ()
    notes: tuple[str, ...] = ()


class Machine(Strict):
    """The hardware and versions of a run."""

    cpu: str
    cores: int
    threads: int
    memory_gib: float
    gpus: tuple[str, ...] = ()
    system: str = ""
    versions: dict[str, str] = Field(default_factory=dict)


class Report(Strict):
    """All sections of one machine."""

    machine: Machine
    sections: tuple[Section, ...] = ()

    def updated(self, section: Section) -> Report:
        """The same with a section new or in the place of an older one."""
        kept = {s.key: s for s in self.sections} | {section.key: section}
        return self.model_copy(update={"sections": tuple(kept[key] for key in sorted(kept))})


class Spread(NamedTuple):
    """Median and range of some rounds."""

    median: float
    low: float
    high: float


def spread(values: Sequence[float]) -> Spread:
    """Median, minimum and maximum; with few rounds the range says more than quartiles."""
    array = np.asarray(values, np.float64)
    return Spread(float(np.median(array)), float(array.min()), float(array.max()))


def ratio(ours: Row, other: Row) -> Spread:
    """How many times better ``ours`` is, from the ratios of each round in which both took part."""
    pairs = zip(ours.rounds, other.rounds, strict=False)
    if ours.higher_is_better:
        return spread([_share(a, b) for a, b in pairs])
    return spread([_share(b, a) for a, b in pairs])


def _share(part: float, whole: float) -> float:
    return part / whole if whole else float("inf")


class Compared(NamedTuple):
    """A row, and how many times better the case's first row of ours is (None for that row)."""

    row: Row
    ours_is_better: Spread | None


def compared(rows: Sequence[Row]) -> Iterator[Compared]:
    """Rows case by case, each against the first of ours in its case."""
    for case in dict.fromkeys(row.case for row in rows):
        group = [row for row in rows if row.case == case]
        reference = next((row for row in group if row.ours), None)
        for row in group:
            same = reference is None or row is reference or row.unit != reference.unit
            yield Compared(row, None if same or reference is None else ratio(reference, row))
