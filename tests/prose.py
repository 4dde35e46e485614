"""Counts how often the prose of this project uses words that its field says otherwise.

``python -m tests.prose`` prints one row per room: words of prose, and uses per 1,000 words of each
family.  ``python -m tests.prose ray.serve httpx`` measures installed packages the same way, and
``--find asks`` lists each use of one family with the words around it.

Prose is: Markdown without code, comments and text values of YAML and JSON, the help texts of the
Makefile, and the docstrings, comments and messages (string literals of at least three words) of
Python modules.  Names in backquotes, paths, and words with an underscore are code, not prose.
"""

from __future__ import annotations

import argparse
import ast
import importlib.util
import io
import json
import re
import sys
import tokenize
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[1]
CODE_ROOTS = ("serve_app", "serve_tools", "graphs")
MESSAGE_WORDS = 3

FAMILIES = {
    name: re.compile(rf"\b(?:{words})\b", re.I)
    for name, words in {
        "answers": r"answer\w*",
        "who": r"who|whom|whose|whom?ever",
        "tells": r"tell|tells|told|telling",
        "asks": r"ask|asks|asked|asking",
        "phrases": r"held against|by turns|so many|under way|not to be had|worth asking|at hand"
        r"|all the same|beside the way|in its turn|let in|lets in|made again",
    }.items()
}
"""Name of a family -> the words and phrases that belong to it."""

_WORD = re.compile(r"[A-Za-z][A-Za-z'’-]*")
_FENCE = re.compile(r"^```.*?^```", re.M | re.S)
_MARKDOWN_CODE = re.compile(r"<!--.*?-->|(?<=\])\([^)]*\)", re.S)
_CODE = re.compile(r"``.+?``|`[^`]*`|https?://\S+|\S*[\w.]/\S+|\S*_\S*", re.S)
_HELP = re.compile(r"##\s+(.*)$", re.M)


@dataclass
class Count:
    """Words of prose in one room, and how many of them belong to each family."""

    words: int = 0
    uses: Counter[str] = field(default_factory=Counter)
    found: list[tuple[str, str]] = field(default_factory=list)
    """(family, text around the use)"""

    def add(self, text: str) -> None:
        """Counts the words of one piece of prose."""
        text = " ".join(_CODE.sub(" ", text).split())
        self.words += len(_WORD.findall(text))
        for family, pattern in FAMILIES.items():
            for use in pattern.finditer(text):
                self.uses[family] += 1
                self.found.append((family, text[max(0, use.start() - 50) : use.end() + 40]))

    def __iadd__(self, other: Count) -> Count:
        self.words += other.words
        self.uses += other.uses
        self.found += other.found
        return self

    def per_thousand(self, family: str) -> float:
        """Uses of a family in 1,000 words; 0 without any words."""
        return 1000 * self.uses[family] / self.words if self.words else 0.0


def markdown(text: str) -> Iterator[str]:
    """The prose of a Markdown page: no code blocks, comments or link targets."""
    yield _MARKDOWN_CODE.sub(" ", _FENCE.sub(" ", text))


def python(source: str) -> Iterator[str]:
    """Comments, docstrings and messages of a Python module."""
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            yield token.string.lstrip("#! ")
    yield from _literals(ast.parse(source))


def _literals(node: ast.AST) -> Iterator[str]:
    if isinstance(node, ast.JoinedStr):
        text = " {} ".join(str(p.value) for p in node.values if isinstance(p, ast.Constant))
        if _is_message(text):
            yield text
    elif isinstance(node, ast.Constant) and isinstance(node.value, str):
        if _is_message(node.value):
            yield node.value
    else:
        for child in ast.iter_child_nodes(node):
            yield from _literals(child)


def _is_message(text: str) -> bool:
    return " " in text.strip() and len(_WORD.findall(text)) >= MESSAGE_WORDS


def yaml_file(text: str) -> Iterator[str]:
    """Comments and text values of a YAML file."""
    yield from re.findall(r"(?:^|\s)#\s+(.*)$", text, re.M)
    yield from _values(yaml.safe_load(text))


def _values(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        if _is_message(value) and "(ray_" not in value:
            yield value
    elif isinstance(value, dict):
        for inner in value.values():
            yield from _values(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _values(inner)


def documents() -> dict[str, Count]:
    """Every text beside the code: pages, configurations, deployment files, the Makefile."""
    counts = {}
    pages = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md"))]
    for page in pages:
        counts[page.relative_to(ROOT).as_posix()] = _count(markdown(page.read_text("utf-8")))
    texts = [*sorted((ROOT / "configs").glob("*.yaml")), ROOT / "ray_cluster.yaml"]
    counts["configs"] = _count(t for f in texts for t in yaml_file(f.read_text("utf-8")))
    deploy = Count()
    for file in sorted((ROOT / "deploy").rglob("*.*")):
        text = file.read_text("utf-8")
        deploy += _count(_values(json.loads(text)) if file.suffix == ".json" else yaml_file(text))
    counts["deploy"] = deploy
    counts["Makefile"] = _count(_HELP.findall((ROOT / "Makefile").read_text("utf-8")))
    return counts


def package(folder: Path) -> dict[str, Count]:
    """The rooms of a package: its folders, and the modules at its top together."""
    counts: dict[str, Count] = {}
    for file in sorted(folder.rglob("*.py")):
        inner = file.relative_to(folder).parts
        room = folder.name if len(inner) == 1 else f"{folder.name}/{inner[0]}"
        counts.setdefault(room, Count())
        counts[room] += _count(python(file.read_text("utf-8")))
    return counts


def code() -> dict[str, Count]:
    """The rooms of everything that is not a test."""
    return {room: c for name in CODE_ROOTS for room, c in package(ROOT / name).items()}


def total(counts: Iterable[Count]) -> Count:
    """The sum of several rooms."""
    whole = Count()
    for count in counts:
        whole += count
    return whole


def _count(texts: Iterable[str]) -> Count:
    count = Count()
    for text in texts:
        count.add(text)
    return count


def table(counts: dict[str, Count]) -> str:
    """One Markdown row per room: words, and uses per 1,000 words of each family."""
    rows = [f"| | words | {' | '.join(FAMILIES)} |", "|---|--:|" + "--:|" * len(FAMILIES)]
    for room, count in counts.items():
        shares = " | ".join(f"{count.per_thousand(family):.2f}" for family in FAMILIES)
        rows.append(f"| {room} | {count.words:,} | {shares} |")
    return "\n".join(rows)


def _installed(name: str) -> Count:
    spec = importlib.util.find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit(f"{name} is not an installed package")
    return total(package(Path(spec.submodule_search_locations[0])).values())


def main() -> None:
    """Prints the table of this project, or of the installed packages named on the command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.prose", description=__doc__)
    parser.add_argument("packages", nargs="*", help="installed packages to measure instead")
    parser.add_argument("--find", choices=FAMILIES, help="list the uses of one family")
    arguments = parser.parse_args()
    if arguments.packages:
        counts = {name: _installed(name) for name in arguments.packages}
    else:
        pages, rooms = documents(), code()
        totals = {"all documents": total(pages.values()), "all code": total(rooms.values())}
        counts = {**pages, **rooms, **totals}
    if arguments.find:
        for room, count in counts.items():
            if not room.startswith("all "):
                for family, text in count.found:
                    if family == arguments.find:
                        sys.stdout.write(f"{room}: {text}\n")
    sys.stdout.write(table(counts) + "\n")


if __name__ == "__main__":
    main()
