"""``front``: HAProxy before the service, with this project's configuration."""

from __future__ import annotations

import argparse
import signal
import stat
import sys
import tempfile
from importlib import resources
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import yaml
from pydantic import ValidationError

from serve_app.cli import CommandError
from serve_app.cli.configuration import load_settings
from serve_app.edge.program import Front, FrontError
from serve_app.edge.render import render
from serve_app.edge.settings import FrontSettings, load_front_settings

_DEFAULT = "front.yaml"
_STOPS = (signal.SIGTERM, signal.SIGINT)


def add_parser(subparsers: Any) -> None:
    """Register the command."""
    parser = subparsers.add_parser(
        "front", help="HAProxy before the service: TLS, deadlines, caps on bodies and connections"
    )
    parser.add_argument("--config", type=Path, help="the front's settings (configs/front.yaml)")
    parser.add_argument(
        "--service", type=Path,
        help="the Serve config file whose limits hold (configs/local.yaml)",
    )  # fmt: skip
    parser.add_argument("--check", action="store_true", help="only check the configuration")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run the front until SIGTERM or SIGINT, which let requests under way finish.

    SIGHUP reads settings and certificate anew.
    """

    def configuration() -> str:
        settings = _settings(args.config)
        if settings.tls is not None and _others_read(Path(settings.tls.certificate)):
            print(
                "warning: other users of this machine can read the TLS file, which holds the key: "
                "chmod 600",
                file=sys.stderr,
                flush=True,
            )
        return render(settings, _max_body_bytes(args.service))

    # Readable by this user alone, as tempfile makes it.
    with tempfile.TemporaryDirectory(prefix="sam-front-") as folder:
        try:
            front = Front(configuration, Path(folder))
            if args.check:
                front.check()
                print("the front's configuration is valid")
                return 0
            return _attend(front)
        except FrontError as exc:
            raise CommandError(str(exc)) from exc


def _attend(front: Front) -> int:
    """Start HAProxy and pass signals on, one after the other, until it has ended."""
    told: SimpleQueue[int] = SimpleQueue()
    for signum in (*_STOPS, signal.SIGHUP, signal.SIGCHLD):
        signal.signal(signum, lambda number, frame: told.put(number))
    front.start()
    while (status := front.ended()) is None:
        signum = signal.Signals(told.get())
        if signum in _STOPS:
            front.stop()
        elif signum == signal.SIGHUP:
            try:
                front.start()
            except (FrontError, CommandError) as exc:
                print(f"not reloaded: {exc}", file=sys.stderr, flush=True)
    return status


def _others_read(path: Path) -> bool:
    try:
        return bool(path.stat().st_mode & stat.S_IROTH)
    except OSError:
        return False  # HAProxy will say what is the matter with it


def _settings(path: Path | None) -> FrontSettings:
    name = _DEFAULT if path is None else path.name
    try:
        if path is not None:
            return load_front_settings(path)
        with resources.as_file(resources.files("configs").joinpath(_DEFAULT)) as default:
            return load_front_settings(default)
    except OSError as exc:
        raise CommandError(f"the front's settings {name} cannot be read") from exc
    except yaml.YAMLError as exc:
        raise CommandError(f"the front's settings {name} are not YAML: {exc}") from exc
    except ValidationError as exc:
        raise CommandError(f"the front's settings {name}: {exc}") from exc


def _max_body_bytes(service: Path | None) -> int:
    """The largest of a config file's applications."""
    return max(settings.limits.max_body_bytes for settings in load_settings(service))
