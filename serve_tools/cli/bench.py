"""``bench``: this service and its peers in turn, and the ratios."""

from __future__ import annotations

import argparse
import signal
from pathlib import Path
from typing import TYPE_CHECKING

from serve_app.cli import CommandError, log
from serve_tools.cli.files import make_folder, read_json, write_json

if TYPE_CHECKING:
    from serve_app.core.settings import GraphSettings
    from serve_tools.bench.photos import Photos
    from serve_tools.bench.rows import Report
    from serve_tools.evaluation.annotations import Dataset

EPILOG = """\
sections (by letter or name; default: all, h only where there is a GPU):
  a encoder     against segment_anything, torch.compile, onnxruntime and the matrix floor
  b decoder     at 1, 8, 32 and 128 prompts, against segment_anything and onnxruntime
  c http        against isat-sam-backend and a plain FastAPI service
  d everything  against SamAutomaticMaskGenerator
  e batcher     against bare @serve.batch
  f hops        where a repeated prompt's time goes
  g text        text prompts end to end
  h gpu         encoders and decoder on a GPU; without one a dry run
  i boxes       100 boxes in one call
  j memory      of the default variant's replicas, and its growth

Run it on an idle machine: other load distorts the times.  Sections that are not run are kept from
an earlier --json file of the same machine.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.description = (
        "Runs this service and its peers in turn with the same weights and photos and "
        "prints ratios with their range over the rounds."
    )
    parser.epilog = EPILOG
    add = parser.add_argument
    add("sections", nargs="*", metavar="SECTION", help="letters or names, see below")
    add("--quick", action="store_true", help="fewer rounds and sizes, about five minutes")
    add("--config", type=Path, metavar="FILE", help="Serve config (default: configs/local.yaml)")
    add("--url", help="our server runs already at this address (c, f, g, i, j)")
    add("--images", type=Path, metavar="DIR", help="your own photos, at least three")
    add("--annotations", type=Path, metavar="FILE", help="COCO instances of --images, for d")
    add(
        "--out", type=Path, default=Path("out/bench"), metavar="DIR",
        help="logs, the peers' environments, bench.json and bench.png (default: %(default)s)",
    )  # fmt: skip
    add("--json", type=Path, metavar="FILE", help="instead of bench.json in --out")
    add(
        "--report", type=Path, metavar="FILE", help="print the Markdown of such a file, run nothing"
    )


def run(args: argparse.Namespace) -> int:
    """Run sections, or print a report."""
    from serve_tools.bench.report import markdown

    if args.report is not None:
        print(markdown(_read(args.report)), end="")
        return 0
    return _run(args)


def _run(args: argparse.Namespace) -> int:
    from serve_app.cli.configuration import load_settings
    from serve_tools.bench.load import RequestFailed
    from serve_tools.bench.machine import this_machine
    from serve_tools.bench.processes import ServiceFailed
    from serve_tools.bench.report import markdown, plot
    from serve_tools.bench.rows import Report
    from serve_tools.bench.suite import Suite

    # The child processes must not outlive this one.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    keys = _keys(args.sections)
    settings = load_settings(args.config)[0]
    if args.url is not None:
        args.url = _address(args.url)
    photos, dataset = _photos(args.images), _dataset(args, settings)
    make_folder(args.out)
    path = args.json or args.out / "bench.json"
    suite = Suite(settings, photos, args.out, args.quick, args.config, args.url, dataset, say=log)
    report = Report(machine=this_machine(suite.threads))
    if path.exists() and (old := _read(path)).machine == report.machine:
        report = old
    try:
        for section in suite.run(keys):
            report = report.updated(section)
            # After each section: an interrupted run keeps its results.
            write_json(path, report)
    except (RequestFailed, ServiceFailed) as exc:
        raise CommandError(f"{exc}; earlier results are in {path}") from exc
    shown = report.model_copy(
        update={"sections": tuple(s for s in report.sections if s.key in keys)}
    )
    print(markdown(shown), end="")
    print(f"written to {path}")
    plot(path.with_suffix(".png"), report)
    return 0


def _keys(wanted: list[str]) -> list[str]:
    from serve_tools.bench.suite import TITLES, key_of

    if not wanted:
        import torch

        return [key for key in TITLES if key != "h" or torch.cuda.is_available()]
    try:
        return sorted({key_of(text) for text in wanted})
    except ValueError as exc:
        raise CommandError(f"there is no section {exc}; see the command's --help") from exc


def _address(url: str) -> str:
    from serve_app.client import InvalidAddress, checked_address

    try:
        return checked_address(url)
    except InvalidAddress as exc:
        raise CommandError(str(exc)) from exc


def _photos(folder: Path | None) -> Photos:
    from serve_tools.bench.photos import load_photos

    try:
        return load_photos(folder)
    except (OSError, ValueError) as exc:
        raise CommandError(f"the photos cannot be used: {exc}") from exc


def _dataset(args: argparse.Namespace, settings: GraphSettings) -> Dataset | None:
    from serve_tools.evaluation.annotations import EvaluationError, load_dataset

    if args.annotations is None:
        return None
    if args.images is None:
        raise CommandError("--annotations needs --images")
    try:
        return load_dataset(args.images, args.annotations, limit=None, seed=0)
    except EvaluationError as exc:
        raise CommandError(str(exc)) from exc


def _read(path: Path) -> Report:
    from serve_tools.bench.rows import Report

    return read_json(path, Report, "report of this command")
