"""``python -m serve_app measure``: what each variant costs and how good it is, on this host."""

from __future__ import annotations

import argparse
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from serve_app.cli import CommandError, natural, positive

if TYPE_CHECKING:
    from serve_app.core.measurements import MeasurementsFile
    from serve_app.core.settings import GraphSettings
    from serve_tools.profiling.protocol import Effort

EPILOG = """\
The ledger is read when a graph is built: routing by latency and quality, and the scaling policy,
work on its figures.  Measure on an idle host: whatever else runs is in the times.

exit status: 0 all variants measured; 1 some or none were (what was measured is written)
"""


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to the program's own."""
    parser = subparsers.add_parser(
        "measure",
        help="measure every variant on this host and write the ledger",
        description="Measures the configured variants on this host, each in processes of its "
        "own: cold start, memory, passes of several sizes, quality, and agreement with a "
        "reference.  Writes the ledger and prints it.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add(
        "--config", type=Path, metavar="FILE",
        help="Serve config that says what the variants are (default: configs/local.yaml)",
    )  # fmt: skip
    add("--variant", action="append", metavar="NAME", help="only this one; may be given again")
    add("--images", type=Path, metavar="DIR", help="folder of your images (default: drawn ones)")
    add("--annotations", type=Path, metavar="FILE", help="their COCO instances, JSON")
    add("--limit-images", type=positive, metavar="N", help="at most N images, drawn at random")
    add("--max-objects", type=positive, metavar="N", help="at most N objects of each image")
    add("--out", type=Path, metavar="FILE", help="write there instead of where graphs look")
    add("--quick", action="store_true", help="only what routing needs, with few repeats")
    add("--repeats", type=positive, metavar="N", help="passes of each size")
    add("--seed", type=natural, default=0, help="of drawings and intervals (default: %(default)s)")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Measure, write and print the ledger; 1 if a variant could not be measured."""
    from serve_app.cli.configuration import load_settings
    from serve_app.cli.models import open_models
    from serve_app.profiles.measurements import MeasurementsError, measurements_path
    from serve_tools.profiling.report import markdown
    from serve_tools.profiling.runner import measure

    # Its processes must not outlive this one.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    settings = load_settings(args.config)[0]
    names = _names(args.variant, settings)
    effort = _effort(args, settings)
    registry, _ = open_models(settings)
    try:
        path = args.out or measurements_path(settings)
    except MeasurementsError as exc:
        raise CommandError(str(exc)) from exc
    measured = measure(settings, registry, names, effort, _say)
    if measured.ledger is None:
        raise CommandError("no variant could be measured; nothing is written")
    ledger = _write(path, measured.ledger)
    print(markdown(ledger))
    print(f"written to {path}")
    for name, reason in measured.failures.items():
        print(f"error: {name} was not measured: {reason}", file=sys.stderr)
    return 1 if measured.failures else 0


def measure_once(config: Path | None) -> None:
    """Measure quickly if nothing was ever measured on this host; no failure of it is fatal."""
    from serve_app.cli.configuration import load_settings
    from serve_app.cli.models import open_models
    from serve_app.profiles.measurements import (
        MeasurementsError,
        load_measurements,
        measurements_path,
    )
    from serve_tools.profiling.protocol import QUICK
    from serve_tools.profiling.runner import measure

    settings = load_settings(config)[0]
    registry, _ = open_models(settings)
    known = load_measurements(settings, registry)
    if known.entries:
        # Somebody has measured with care: a quick look must not take the place of that.
        for warning in known.warnings:
            _say(f"note: {warning}")
        return
    missing = list(settings.variants)
    names = ", ".join(missing)
    _say(f"measuring {names} on this host, once: a minute or two (--no-measure leaves it out);")
    _say("make measure does it thoroughly, and fits the cascade")
    measured = measure(settings, registry, missing, QUICK, lambda text: None)
    for name, reason in measured.failures.items():
        _say(f"warning: {name} was not measured: {reason}")
    if measured.ledger is not None:
        try:
            _write(measurements_path(settings), measured.ledger)
        except (CommandError, MeasurementsError) as exc:
            _say(f"warning: {exc}; the figures are not kept")


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _names(wanted: list[str] | None, settings: GraphSettings) -> list[str]:
    if unknown := set(wanted or ()) - set(settings.variants):
        raise CommandError(
            f"the config has no variant {', '.join(sorted(unknown))}; it has "
            f"{', '.join(settings.variants)}"
        )
    return list(dict.fromkeys(wanted or settings.variants))


def _effort(args: argparse.Namespace, settings: GraphSettings) -> Effort:
    from serve_tools.evaluation.annotations import EvaluationError
    from serve_tools.profiling.protocol import QUICK, Effort
    from serve_tools.profiling.samples import load_samples

    if (args.images is None) != (args.annotations is None):
        raise CommandError("--images and --annotations go together")
    told = {
        "images_dir": None if args.images is None else str(args.images.resolve()),
        "annotations": None if args.annotations is None else str(args.annotations.resolve()),
        "images": args.limit_images,
        "objects": args.max_objects,
        "repeats": args.repeats,
        "seed": args.seed,
    }
    effort = QUICK if args.quick else Effort()
    effort = effort.model_copy(update={k: v for k, v in told.items() if v is not None})
    try:
        load_samples(effort, settings.limits)  # better now than after minutes
    except EvaluationError as exc:
        raise CommandError(str(exc)) from exc
    return effort


def _write(path: Path, ledger: MeasurementsFile) -> MeasurementsFile:
    from serve_app.profiles.measurements import MeasurementsError, read_measurements
    from serve_tools.profiling.write import merged, write_ledger

    try:
        ledger = merged(ledger, read_measurements(path))
    except MeasurementsError as exc:
        _say(f"warning: {exc}; it is written anew")
    try:
        write_ledger(path, ledger)
    except OSError as exc:
        raise CommandError(f"{path} cannot be written") from exc
    return ledger
