"""The parts of ``python -m tests.chaos``, each run in a process of its own."""

from __future__ import annotations

import importlib
import multiprocessing
import signal
import sys
import traceback
from collections.abc import Mapping
from multiprocessing.connection import Connection
from types import FrameType

from .report import Part, Report

PARTS: Mapping[str, str] = {
    "overload": "overload:run",
    "kills": "kills:run",
    "redis": "redis_faults:run",
    "slow_clients": "slow_clients:run",
    "cancellation": "cancellation:run",
    "drain": "drain:run",
    "changes": "changes:run",
    "suites": "suites:run",
}
"""What a run without names does, in this order."""

LONG: Mapping[str, str] = {
    "soak": "soak:run",
    "soak_leak": "soak:run_leak",
    "soak_real": "soak:run_real",
}
"""Only by name; half an hour, ten minutes and half an hour, with ``--quick`` about five each."""


_LEAVING_S = 30.0


def apart(name: str, quick: bool) -> Report:
    """A part in a process of its own: what it leaves of Ray's threads must not meet the next."""
    context = multiprocessing.get_context("spawn")
    mine, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_part, args=(name, quick, theirs))
    process.start()
    theirs.close()
    try:
        report: Report = mine.recv()
        process.join(_LEAVING_S)  # by itself, so that Ray's client takes its leave in peace
    except EOFError:
        report = Report()
        report.add(name, "ran to its end", "no", "", False)
    finally:
        # One that is not through ends its Ray.
        process.terminate()
        process.join()
    return report


def _part(name: str, quick: bool, results: Connection) -> None:
    signal.signal(signal.SIGTERM, leave_in_order)
    report = Report()
    module, _, function = {**PARTS, **LONG}[name].partition(":")
    try:
        part: Part = getattr(importlib.import_module(f"{__package__}.{module}"), function)
        part(report, quick)
    except Exception as exc:
        # The other parts are run all the same; this one counts as broken.
        traceback.print_exc()
        report.add(name, "ran to its end", type(exc).__name__, "", False)
    results.send(report)


def leave_in_order(signum: int, frame: FrameType | None) -> None:
    """On the way out processes are ended that were started."""
    sys.exit(128 + signum)
