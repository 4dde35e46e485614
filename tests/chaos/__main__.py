"""``python -m tests.chaos [parts ...] [--quick] [--out FILE]``: one table of what is survived."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from pathlib import Path

from .parts import LONG, PARTS, apart, leave_in_order
from .report import Report


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
    signal.signal(signal.SIGTERM, leave_in_order)
    report = Report()
    for name in args.parts or PARTS:
        print(f"\n== {name}", flush=True)
        found = apart(name, args.quick)
        report.rows += found.rows
        report.notes += found.notes
    return report.finish(args.out)


if __name__ == "__main__":
    sys.exit(main())
