"""The command line: ``serve-anything COMMAND``, or ``python -m serve_app COMMAND``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from textwrap import fill

from serve_app.cli import CommandError
from serve_app.cli.commands import COMMANDS, GROUPS, Command, ToolsMissing


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command with the arguments ``argv``; None: those of this process.

    Returns:
        The exit code of the process: 1 if the command failed, 2 if it cannot run as called or if
        packages that it needs are not installed.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    program = _program()
    name = _parser(program).parse_args(words[:1]).command
    try:
        return _run(COMMANDS[name], program, words[1:])
    except ToolsMissing as exc:
        print(f"error: {exc}", file=sys.stderr)
        return 2
    except CommandError as exc:
        print(f"error: {exc}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


def _run(command: Command, program: str, words: list[str]) -> int:
    module = command.load()
    parser = argparse.ArgumentParser(
        prog=f"{program} {command.name}", formatter_class=argparse.RawDescriptionHelpFormatter
    )
    module.add_arguments(parser)
    about = parser.description or f"{command.help[0].upper()}{command.help[1:]}."
    parser.description = fill(about, 90)
    example = f"example:\n  {program} {command.example}\n"
    parser.epilog = f"{parser.epilog or ''}\n{example}".lstrip()
    return int(module.run(parser.parse_args(words)))


def _parser(program: str) -> argparse.ArgumentParser:
    """Of the first argument alone; its help lists all commands."""
    parser = argparse.ArgumentParser(
        prog=program,
        usage=f"{program} COMMAND [--help] ...",
        description="Segment Anything as a Ray Serve application.",
        epilog=_listing(program),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("command", choices=COMMANDS, metavar="COMMAND", help="one of these:")
    return parser


def _listing(program: str) -> str:
    lines = []
    for group in GROUPS:
        lines.append(f"\n{group}:")
        for command in COMMANDS.values():
            if command.group == group:
                lines.append(f"  {command.name:<10}{command.help}")
                lines.append(f"  {'':<10}  $ {program} {command.example}")
    return "\n".join(lines).lstrip()


def _program() -> str:
    name = Path(sys.argv[0]).stem
    return name if name == "serve-anything" else "python -m serve_app"


if __name__ == "__main__":
    sys.exit(main())
