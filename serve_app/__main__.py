"""``python -m serve_app COMMAND``."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence

from serve_app.cli import CommandError

COMMAND_MODULES = (
    "serve_app.cli.serve",
    "serve_app.cli.models",
    "serve_tools.cli.evaluate",
    "serve_tools.cli.measure",
    "serve_tools.cli.quantise",
    "serve_tools.cli.simulate",
    "serve_tools.cli.bench",
    "serve_app.cli.front",
    "serve_app.cli.keys",
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the process's exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m serve_app", description="Segment Anything as a Ray Serve application."
    )
    subparsers = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for name in COMMAND_MODULES:
        importlib.import_module(name).add_parser(subparsers)
    args = parser.parse_args(argv)
    try:
        return int(args.run(args))
    except CommandError as exc:
        print(f"error: {exc}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
