"""The items that are pytest's: run with the numbers of the plan, their outcome put in the table."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from dataclasses import dataclass, field

from ..fakes.graph import ROOT
from .report import Report

_PATIENCE_S = 1500.0


@dataclass(frozen=True)
class Suite:
    """Tests of an item.

    Attributes:
        settings: environment variables that ask for the plan's numbers.
        shortened: the same for a quick run.
        cluster: they start a Ray of their own.
    """

    item: str
    paths: tuple[str, ...]
    settings: dict[str, str] = field(default_factory=dict)
    shortened: dict[str, str] = field(default_factory=dict)
    cluster: bool = False


SUITES = (
    Suite(
        "1 fuzz",
        ("tests/api/test_openapi_fuzz.py",),
        {"SAM_SERVE_FUZZ_CASES": "1000"},
        {"SAM_SERVE_FUZZ_CASES": "50"},
    ),
    Suite(
        "2 properties",
        (
            "tests/unit/test_masks.py",
            "tests/unit/test_frame.py",
            "tests/unit/test_image_id.py",
            "tests/unit/test_cache_codec.py",
            "tests/unit/test_configs.py",
            "tests/unit/test_calls.py",
        ),
    ),
    Suite(
        "3 hostile images",
        ("tests/hostile",),
        {"SAM_SERVE_HOSTILE_IMAGES": "400"},
        {"SAM_SERVE_HOSTILE_IMAGES": "81"},
    ),
    Suite("4 protocol", ("tests/api", "tests/security")),
    Suite("7, 8 Redis, corrupted values", ("tests/faults",)),
    Suite("14 exposure: what listens where", ("tests/cluster/test_exposure.py",), cluster=True),
    Suite("14 the front, weights' hashes", ("tests/front", "tests/unit/test_weights.py")),
)


def run(report: Report, quick: bool) -> None:
    """One pytest after the other."""
    for suite in SUITES:
        began = time.monotonic()
        settings = suite.shortened if quick else suite.settings
        rc, last = _pytest(suite, settings)
        told = f"{last} in {time.monotonic() - began:.0f} s"
        what = [*suite.paths, *(f"{name}={value}" for name, value in settings.items())]
        report.add(suite.item, ", ".join(what), told, "all pass", rc == 0)


def _pytest(suite: Suite, settings: dict[str, str]) -> tuple[int, str]:
    """Exit status and pytest's own count."""
    chosen = "cluster" if suite.cluster else "not cluster"
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-m", chosen, "-p", "no:cacheprovider", *suite.paths],
        cwd=ROOT,
        env={**os.environ, **settings},
        capture_output=True,
        text=True,
        timeout=_PATIENCE_S,
    )
    if done.returncode:
        print(done.stdout[-3000:], flush=True)
    counts = re.findall(r"\d+ (?:passed|failed|skipped|xfailed|errors?)", done.stdout[-400:])
    return done.returncode, ", ".join(counts) or "nothing ran"
