"""``python -m tests.chaos [items ...] [--quick] [--out FILE]``: one table of what is survived."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
import traceback
from collections.abc import Mapping
from pathlib import Path

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


def main() -> int:
    """Run the parts asked for, each on a Ray of its own."""
    known = {**PARTS, **LONG}
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("parts", nargs="*", metavar="part", help=f"of {', '.join(known)}")
    parser.add_argument("--quick", action="store_true", help="fewer and shorter, same bounds")
    parser.add_argument("--out", type=Path, help="a file for the table")
    parser.add_argument("--minutes", type=float, help="of a soak, after its start")
    args = parser.parse_args()
    if args.minutes is not None:
        os.environ["SAM_SERVE_SOAK_MINUTES"] = str(args.minutes)
    unknown = set(args.parts) - set(known)
    if unknown:
        parser.error(f"no such part: {', '.join(sorted(unknown))}")
    report = Report()
    for name in args.parts or PARTS:
        print(f"\n== {name}", flush=True)
        module, _, function = known[name].partition(":")
        try:
            part: Part = getattr(importlib.import_module(f"{__package__}.{module}"), function)
            part(report, args.quick)
        except Exception as exc:
            # The other parts are run all the same; this one counts as broken.
            traceback.print_exc()
            report.add(name, "ran to its end", type(exc).__name__, "", False)
    return report.finish(args.out)


if __name__ == "__main__":
    sys.exit(main())
