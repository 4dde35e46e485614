"""``python -m serve_app simulate``: router and scaling policy against a simulated load."""

from __future__ import annotations

import argparse
import importlib.util
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from serve_app.cli import CommandError

if TYPE_CHECKING:
    from serve_app.core.measurements import Profile
    from serve_tools.simulation.comparison import Row
    from serve_tools.simulation.engine import Run
    from serve_tools.simulation.scenario import Scale
    from serve_tools.simulation.traces import Trace

TRACES = ("step", "burst", "day", "shift", "hot", "dead")
SCALES = ("2-cores", "1-gpu", "8-gpus", "64-gpus")
POLICY_NAMES = ("shared", "default", "tuned")

EPILOG = """\
traces:
  step   from 30 % of the budget to 80 % and back      shift  fast to accurate and back
  burst  a minute above the budget each five minutes   hot    one image is asked for by many
  day    a day in an hour                              dead   one replica of each pool dies

policies:
  shared   this application's; default  Ray Serve's own as it comes; tuned  the same with a full
  batch as target_ongoing_requests, delays of 5 and 60 s, look-back 5 s and metrics each second
"""


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to the program's own."""
    parser = subparsers.add_parser(
        "simulate",
        help="scaling policy and router under simulated load",
        description="Simulates requests, replicas and batches under the service's own router and "
        "scaling policy, and under Ray Serve's, and prints what each would miss and cost.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
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
    add("--out", type=Path, metavar="DIR", help="draw plots there; needs matplotlib")
    add("--json", type=Path, metavar="FILE", help="write all figures there as well")
    add("--seed", type=int, default=0, help="of arrivals and service times (default: %(default)s)")
    add("--minutes", type=float, metavar="M", help="cut the traces to their first M minutes")
    add(
        "--ledger", type=Path, metavar="FILE",
        help="take the figures of variants fast and accurate from a ledger",
    )  # fmt: skip
    device = parser.add_argument_group(
        "a host on which all replicas share one device",
        "Poisson arrivals at a constant rate and one replica of each pool, to be held against a "
        "live run: prints the predicted median.",
    )
    device.add_argument("--shared-device", action="store_true", help="simulate that instead")
    device.add_argument("--rate", type=float, default=0.5, metavar="R", help="requests a second")
    device.add_argument(
        "--mix", type=float, default=0.0, metavar="SHARE", help="that ask for quality"
    )
    device.add_argument("--new", type=float, default=0.5, metavar="SHARE", help="with a new image")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Simulate as told and print the table."""
    from serve_tools.simulation.comparison import markdown, verdicts

    profiles = _profiles(args.ledger) if args.ledger else {}
    if args.shared_device:
        return _shared_device(args, profiles)
    if args.out is not None and importlib.util.find_spec("matplotlib") is None:
        raise CommandError("plots need matplotlib; install it, or leave out --out")
    table: list[Row] = []
    for scale in _scales(args, profiles):
        for trace in _traces(args):
            table += _compare(args, scale, trace)
    print(markdown(table))
    print(verdicts(table), end="")
    if args.out is not None:
        from serve_tools.simulation.plots import plot_summary

        plot_summary(_folder(args.out) / "summary.png", table)
    if args.json is not None:
        _write(args.json, [row.as_dict() for row in table])
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


def _compare(args: argparse.Namespace, scale: Scale, trace: Trace) -> list[Row]:
    from serve_tools.simulation.comparison import simulate
    from serve_tools.simulation.engine import Options

    rows: list[Row] = []
    runs: dict[str, Run] = {}
    for policy in args.policy or POLICY_NAMES:
        print(f"{scale.name}, {trace.name}, {policy}", file=sys.stderr)
        row, runs[policy] = simulate(scale, trace, policy, Options(seed=args.seed))
        rows.append(row)
    if args.out is not None:
        from serve_tools.simulation.plots import plot_course

        name = f"{scale.name.replace(' ', '-').lower()}-{trace.name}.png"
        plot_course(_folder(args.out) / name, scale, trace, runs)
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
        _write(args.json, found)
    return 0


def _profiles(path: Path) -> dict[str, Profile]:
    from pydantic import ValidationError

    from serve_app.core.measurements import MeasurementsFile

    try:
        ledger = MeasurementsFile.model_validate_json(path.read_bytes())
    except OSError as exc:
        raise CommandError(f"{path} cannot be read") from exc
    except ValidationError as exc:
        raise CommandError(f"{path} is no ledger") from exc
    return {name: entry.profile for name, entry in ledger.entries.items()}


def _folder(path: Path) -> Path:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as exc:
        raise CommandError(f"{path} cannot be made") from exc
    return path


def _write(path: Path, figures: Any) -> None:
    import orjson

    try:
        path.write_bytes(orjson.dumps(figures, option=orjson.OPT_INDENT_2))
    except OSError as exc:
        raise CommandError(f"{path} cannot be written") from exc
