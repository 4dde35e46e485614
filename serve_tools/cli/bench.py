"""``python -m serve_app bench``: this service and its peers in turn, and the ratios."""

from __future__ import annotations

import argparse
import importlib.util
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from serve_app.cli import CommandError

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

Run it on an idle machine: whatever else runs is in the times.  Sections that are not run now are
kept from an earlier --json file of the same machine.
"""


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to the program's own."""
    parser = subparsers.add_parser(
        "bench",
        help="side-by-side benchmarks against peers, on this machine",
        description="Runs this service and its peers in turn with the same weights and photos and "
        "prints ratios with their range over the rounds.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("sections", nargs="*", metavar="SECTION", help="letters or names, see below")
    add("--quick", action="store_true", help="fewer rounds and sizes, about five minutes")
    add("--config", type=Path, metavar="FILE", help="Serve config (default: configs/local.yaml)")
    add("--url", help="our server runs already at this address (c, f, g, i, j)")
    add("--images", type=Path, metavar="DIR", help="photos of yours, at least three")
    add("--annotations", type=Path, metavar="FILE", help="COCO instances of --images, for d")
    add(
        "--out", type=Path, default=Path("out/bench"), metavar="DIR",
        help="logs, the peers' environments, bench.json and bench.png (default: %(default)s)",
    )  # fmt: skip
    add("--json", type=Path, metavar="FILE", help="instead of bench.json in --out")
    add(
        "--report", type=Path, metavar="FILE", help="print the Markdown of such a file, run nothing"
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run sections, or print a report; 1 if a section failed."""
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
    from serve_tools.bench.report import markdown
    from serve_tools.bench.rows import Report
    from serve_tools.bench.suite import Suite

    # The services that were started must not outlive this process.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    keys = _keys(args.sections)
    settings = load_settings(args.config)[0]
    photos, dataset = _photos(args.images), _dataset(args, settings)
    try:
        args.out.mkdir(parents=True, exist_ok=True)
    except OSError as exc:
        raise CommandError(f"{args.out} cannot be made") from exc
    path = args.json or args.out / "bench.json"
    suite = Suite(settings, photos, args.out, args.quick, args.config, args.url, dataset, say=_say)
    report = Report(machine=this_machine(suite.threads))
    if path.exists() and (old := _read(path)).machine == report.machine:
        report = old
    try:
        for section in suite.run(keys):
            report = report.updated(section)
            # After each: a run that is cut short keeps what it has.
            _write(path, report)
    except (RequestFailed, ServiceFailed) as exc:
        raise CommandError(f"{exc}; what was measured before is in {path}") from exc
    shown = report.model_copy(
        update={"sections": tuple(s for s in report.sections if s.key in keys)}
    )
    print(markdown(shown), end="")
    print(f"written to {path}")
    _plot(path.with_suffix(".png"), report)
    return 0


def _keys(wanted: list[str]) -> list[str]:
    from serve_tools.bench.suite import TITLES, key_of

    if not wanted:
        import torch

        return [key for key in TITLES if key != "h" or torch.cuda.is_available()]
    try:
        return sorted({key_of(text) for text in wanted})
    except ValueError as exc:
        raise CommandError(
            f"there is no section {exc}; see python -m serve_app bench --help"
        ) from exc


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
        raise CommandError("--annotations go with --images")
    try:
        return load_dataset(args.images, args.annotations, limit=None, seed=0)
    except EvaluationError as exc:
        raise CommandError(str(exc)) from exc


def _read(path: Path) -> Report:
    from pydantic import ValidationError

    from serve_tools.bench.rows import Report

    try:
        return Report.model_validate_json(path.read_bytes())
    except OSError as exc:
        raise CommandError(f"{path} cannot be read") from exc
    except ValidationError as exc:
        raise CommandError(f"{path} is no report of this command") from exc


def _write(path: Path, report: Report) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(report.model_dump_json(indent=2), encoding="utf-8")
    except OSError as exc:
        raise CommandError(f"{path} cannot be written") from exc


def _plot(path: Path, report: Report) -> None:
    if importlib.util.find_spec("matplotlib") is None:
        _say("no plot: matplotlib is not installed")
        return
    from serve_tools.bench.report import plot

    plot(path, report)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
