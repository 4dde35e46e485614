"""``measure``: cost and quality of each variant on this host."""

from __future__ import annotations

import argparse
import signal
from pathlib import Path
from typing import TYPE_CHECKING

from serve_app.cli import CommandError, log, positive
from serve_tools.cli.files import check_variants, natural

if TYPE_CHECKING:
    from serve_app.core.measurements import MeasurementsFile
    from serve_app.core.settings import GraphSettings
    from serve_app.models.registry import Registry
    from serve_tools.profiling.protocol import Effort

EPILOG = """\
The ledger is read when a graph is built: routing by latency and quality and the scaling policy use
its figures.  Measure on an idle host: other load distorts the times.

exit status: 0 all variants measured; 1 some or none (those that succeeded are written)
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.description = (
        "Measures the configured variants on this host, each in processes of its "
        "own: cold start, memory, passes of several sizes, quality, and parity with a "
        "reference.  Writes the ledger and prints it."
    )
    parser.epilog = EPILOG
    add = parser.add_argument
    add(
        "--config", type=Path, metavar="FILE",
        help="Serve config that says what the variants are (default: configs/local.yaml)",
    )  # fmt: skip
    add("--variant", action="append", metavar="NAME", help="only this one; may be repeated")
    add("--images", type=Path, metavar="DIR", help="your images (default: synthetic ones)")
    add("--annotations", type=Path, metavar="FILE", help="their COCO instances, JSON")
    add("--limit-images", type=positive, metavar="N", help="at most N images, chosen at random")
    add("--max-objects", type=positive, metavar="N", help="at most N objects of each image")
    add("--out", type=Path, metavar="FILE", help="write there instead of where graphs look")
    add("--quick", action="store_true", help="only what routing needs, with few repeats")
    add("--repeats", type=positive, metavar="N", help="passes of each size")
    add("--seed", type=natural, default=0, help="of samples and intervals (default: %(default)s)")


def run(args: argparse.Namespace) -> int:
    """Measure, write and print the ledger; 1 if a variant could not be measured."""
    from serve_app.cli.configuration import load_settings, open_models
    from serve_app.profiles.measurements import MeasurementsError, measurements_path
    from serve_tools.profiling.report import markdown
    from serve_tools.profiling.runner import measure

    # The child processes must not outlive this one.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    settings = load_settings(args.config)[0]
    check_variants(args.variant or (), settings.variants)
    names = list(dict.fromkeys(args.variant or settings.variants))
    effort = _effort(args, settings)
    registry, _ = open_models(settings)
    try:
        path = args.out or measurements_path(settings)
    except MeasurementsError as exc:
        raise CommandError(str(exc)) from exc
    measured = measure(settings, registry, names, effort, log)
    if measured.ledger is None:
        raise CommandError("no variant could be measured; nothing is written")
    ledger = _write(path, measured.ledger)
    print(markdown(ledger))
    print(f"written to {path}")
    for name, reason in measured.failures.items():
        log(f"error: {name} was not measured: {reason}")
    return 1 if measured.failures else 0


def measure_quickly(settings: GraphSettings, registry: Registry) -> None:
    """Measure all variants with little effort and write the ledger; no failure is fatal."""
    from serve_app.profiles.measurements import MeasurementsError, measurements_path
    from serve_tools.profiling.protocol import QUICK
    from serve_tools.profiling.runner import measure

    names = list(settings.variants)
    log(f"measuring {', '.join(names)} once on this host: a minute or two (--no-measure skips it);")
    log("the command measure does it thoroughly, and fits the cascade")
    measured = measure(settings, registry, names, QUICK, lambda text: None)
    for name, reason in measured.failures.items():
        log(f"warning: {name} was not measured: {reason}")
    if measured.ledger is not None:
        try:
            _write(measurements_path(settings), measured.ledger)
        except (CommandError, MeasurementsError) as exc:
            log(f"warning: {exc}; the measurements are lost")


def _effort(args: argparse.Namespace, settings: GraphSettings) -> Effort:
    from serve_tools.evaluation.annotations import EvaluationError
    from serve_tools.profiling.protocol import QUICK, Effort
    from serve_tools.profiling.samples import load_samples

    if (args.images is None) != (args.annotations is None):
        raise CommandError("--images and --annotations go together")
    given = {
        "images_dir": None if args.images is None else str(args.images.resolve()),
        "annotations": None if args.annotations is None else str(args.annotations.resolve()),
        "images": args.limit_images,
        "objects": args.max_objects,
        "repeats": args.repeats,
        "seed": args.seed,
    }
    effort = QUICK if args.quick else Effort()
    effort = effort.model_copy(update={k: v for k, v in given.items() if v is not None})
    try:
        load_samples(effort, settings.limits)  # fails now rather than after minutes
    except EvaluationError as exc:
        raise CommandError(str(exc)) from exc
    return effort


def _write(path: Path, ledger: MeasurementsFile) -> MeasurementsFile:
    from serve_app.profiles.measurements import MeasurementsError, read_measurements
    from serve_tools.profiling.write import merged, write_ledger

    try:
        ledger = merged(ledger, read_measurements(path))
    except MeasurementsError as exc:
        log(f"warning: {exc}; it is replaced")
    try:
        write_ledger(path, ledger)
    except OSError as exc:
        raise CommandError(f"{path} cannot be written") from exc
    return ledger
