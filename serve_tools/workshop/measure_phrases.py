"""How the ``labels`` engine reads phrases, by author and kind.

Run with ``python -m serve_tools.workshop.measure_phrases --model DIR``.  There are two sets:
`serve_tools.workshop.phrase_set` by the engine's author, `serve_tools.workshop.blind_phrase_set`
by one who did not know the engine, but who mended it afterwards.  Each is of two halves: by the
errors of one the reading was developed, those of the other were not looked at.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from serve_app.cli import text_table
from serve_app.core.settings import LabelsSettings
from serve_app.core.types import UnknownText
from serve_app.engines.sentence_transformer.scorer import LabelsScorer
from serve_tools.workshop import blind_phrase_set, phrase_set
from serve_tools.workshop.phrase_set import is_held_out


@dataclass(frozen=True, slots=True)
class PhraseSet:
    """Phrases by kind: those that name a label, with it, and those that name none."""

    naming: Mapping[str, Mapping[str, str]]
    naming_nothing: Mapping[str, tuple[str, ...]]

    @property
    def kinds(self) -> tuple[str, ...]:
        return (*self.naming, *self.naming_nothing)


SETS: Mapping[str, PhraseSet] = {
    "own": PhraseSet(phrase_set.NAMING, phrase_set.NAMING_NOTHING),
    "blind": PhraseSet(blind_phrase_set.NAMING, blind_phrase_set.NAMING_NOTHING),
}


@dataclass(frozen=True, slots=True)
class Reading:
    """One phrase: the label that it names, or None, and the labels that were read."""

    kind: str
    phrase: str
    label: str | None
    read: frozenset[str]

    @property
    def right(self) -> bool:
        return not self.read if self.label is None else self.label in self.read


def readings(scorer: LabelsScorer, phrases: PhraseSet) -> Iterator[Reading]:
    """Read all phrases of a set."""
    for kind, named in phrases.naming.items():
        for phrase, label in named.items():
            yield Reading(kind, phrase, label or None, _read(scorer, phrase))
    for kind, unnamed in phrases.naming_nothing.items():
        for phrase in unnamed:
            yield Reading(kind, phrase, None, _read(scorer, phrase))


def share_right(found: list[Reading], kind: str, *, held_out: bool) -> tuple[int, int]:
    """How many phrases of a kind and a half are read rightly, and how many there are."""
    some = [r for r in found if r.kind == kind and is_held_out(r.phrase) is held_out]
    return sum(r.right for r in some), len(some)


def _read(scorer: LabelsScorer, phrase: str) -> frozenset[str]:
    labels = scorer.labels_of(phrase)
    return frozenset() if isinstance(labels, UnknownText) else labels


def main() -> None:
    parser = argparse.ArgumentParser(description="How the labels engine reads phrases, by kind.")
    parser.add_argument("--model", type=Path, required=True, help="the sentence model's directory")
    parser.add_argument("--show", action="store_true", help="list the errors of the first halves")
    arguments = parser.parse_args()
    scorer = LabelsScorer(arguments.model, LabelsSettings(), threads=1)
    rows = []
    wrong = []
    for author, phrases in SETS.items():
        found = list(readings(scorer, phrases))
        wrong += [r for r in found if not r.right and not is_held_out(r.phrase)]
        for kind in phrases.kinds:
            should = "a label" if kind in phrases.naming else "unknown"
            halves = [share_right(found, kind, held_out=held_out) for held_out in (False, True)]
            shares = (f"{right} of {count} ({right / count:.0%})" for right, count in halves)
            rows.append((author, kind, should, *shares))
    print(text_table(("set", "kind", "right is", "developed on", "held out"), rows))
    if arguments.show:
        for r in wrong:
            print(f"{r.kind}: {r.phrase!r} is read as {sorted(r.read) or 'unknown'}")


if __name__ == "__main__":
    main()
