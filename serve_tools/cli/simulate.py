"""``simulate``: router and scaling policy under simulated load."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from serve_app.cli import CommandError, log
from serve_tools.cli.files import make_folder, read_json, write_json

if TYPE_CHECKING:
    from serve_app.core.measurements import Profile
    from serve_tools.simulation.comparison import RunSummary
    from serve_tools.simulation.engine import Run
    from serve_tools.simulation.scenario import Scale
    from serve_tools.simulation.traces import Trace

TRACES = ("step", "burst", "day", "shift", "hot", "dead")
SCALES = ("2-cores", "1-gpu", "8-gpus", "64-gpus")
POLICY_NAMES = ("shared", "default", "tuned")

EPILOG = """\
traces:
  step   from 30 % of the budget to 80 % and back      shift  fast to accurate and back
  burst  a minute above the budget each five minutes   hot    many requests for one image
  day    a day in an hour                              dead   one replica of each pool dies

policies:
  shared   this application's; default  Ray Serve's own, unchanged; tuned  the same with a full
  batch as target_ongoing_requests, delays of 5 and 60 s, look-back 5 s and metrics each second
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.description = (
        "Simulates requests, replicas and batches under the service's own router and "
        "scaling policy, and under Ray Serve's, and prints what each would miss and cost."
    )
    parser.epilog = EPILOG
    add = parser.add_argument
    add(
        "--trace", action="append", choices=TRACES, help="may be given several times (default: all)"
    )
    add(
        "--scale", action="append", choices=SCALES,
        help="may be given several times (default: all)",
    )  # fmt: skip
    add(
        "--policy", action="append", choices=POLICY_NAMES,
        help="may be given several times (default: all)",
    )  # fmt: skip
    add("--out", type=Path, metavar="DIR", help="write plots there")
    add("--json", type=Path, metavar="FILE", help="write all figures there as well")
    add("--seed", type=int, default=0, help="of arrivals and service times (default: %(default)s)")
    add("--minutes", type=float, metavar="M", help="cut the traces to their first M minutes")
    add(
        "--ledger", type=Path, metavar="FILE",
        help="take the figures of variants fast and accurate from a ledger",
    )  # fmt: skip
    device = parser.add_argument_group(
        "a host on which all replicas share one device",
        "Poisson arrivals at a constant rate and one replica of each pool, to compare with a live "
        "run: prints the predicted median.",
    )
    device.add_argument("--shared-device", action="store_true", help="simulate that instead")
    device.add_argument("--rate", type=float, default=0.5, metavar="R", help="requests per second")
    device.add_argument(
        "--mix", type=float, default=0.0, metavar="SHARE", help="of requests that require quality"
    )
    device.add_argument(
        "--new", type=float, default=0.5, metavar="SHARE", help="of requests with a new image"
    )


def run(args: argparse.Namespace) -> int:
    """Simulate and print the table."""
    from serve_tools.simulation.comparison import markdown, verdicts

    profiles = _profiles(args.ledger) if args.ledger else {}
    if args.shared_device:
        return _shared_device(args, profiles)
    table: list[RunSummary] = []
    for scale in _scales(args, profiles):
        for trace in _traces(args):
            table += _compare(args, scale, trace)
    print(markdown(table))
    print(verdicts(table), end="")
    if args.out is not None:
        from serve_tools.simulation.plots import plot_summary

        plot_summary(make_folder(args.out) / "summary.png", table)
    if args.json is not None:
        write_json(args.json, [row.as_dict() for row in table])
    return 0


def _scales(args: argparse.Namespace, profiles: dict[str, Profile]) -> list[Scale]:
    from serve_tools.simulation.scenario import scales, with_profiles

    known = scales()
    return [with_profiles(known[name], profiles) for name in args.scale or SCALES]


def _traces(args: argparse.Namespace) -> list[Trace]:
    from dataclasses import replace

    from serve_tools.simulation.traces import traces

    known = [traces()[name] for name in args.trace or TRACES]
    if args.minutes is None:
        return known
    if args.minutes <= 0:
        raise CommandError("--minutes must be positive")
    return [replace(trace, seconds=min(trace.seconds, 60 * args.minutes)) for trace in known]


def _compare(args: argparse.Namespace, scale: Scale, trace: Trace) -> list[RunSummary]:
    from serve_tools.simulation.comparison import simulate
    from serve_tools.simulation.engine import Options

    rows: list[RunSummary] = []
    runs: dict[str, Run] = {}
    for policy in args.policy or POLICY_NAMES:
        log(f"{scale.name}, {trace.name}, {policy}")
        row, runs[policy] = simulate(scale, trace, policy, Options(seed=args.seed))
        rows.append(row)
    if args.out is not None:
        from serve_tools.simulation.plots import plot_timeline

        name = f"{scale.name.replace(' ', '-').lower()}-{trace.name}.png"
        plot_timeline(make_folder(args.out) / name, scale, trace, runs)
    return rows


def _shared_device(args: argparse.Namespace, profiles: dict[str, Profile]) -> int:
    from serve_tools.simulation.live import predict
    from serve_tools.simulation.scenario import scales, with_profiles

    if args.rate <= 0 or not 0 <= args.mix <= 1 or not 0 <= args.new <= 1:
        raise CommandError("--rate must be positive, --mix and --new between 0 and 1")
    scale = with_profiles(scales()["2-cores"], profiles)
    found = predict(scale, rate=args.rate, mix=args.mix, new=args.new, seed=args.seed)
    for name, value in found.items():
        print(f"{name}: {value:,.1f}")
    if args.json is not None:
        write_json(args.json, found)
    return 0


def _profiles(path: Path) -> dict[str, Profile]:
    from serve_app.core.measurements import MeasurementsFile

    ledger = read_json(path, MeasurementsFile, "ledger")
    return {name: entry.profile for name, entry in ledger.entries.items()}
