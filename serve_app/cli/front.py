"""``front``: HAProxy before the service, configured from this project's settings."""

from __future__ import annotations

import argparse
import signal
import stat
import tempfile
from importlib import resources
from pathlib import Path
from queue import SimpleQueue

import yaml
from pydantic import ValidationError

from serve_app.cli import CommandError, log
from serve_app.cli.configuration import load_settings
from serve_app.edge.program import Front, FrontError
from serve_app.edge.render import render
from serve_app.edge.settings import FrontSettings, load_front_settings

_DEFAULT = "front.yaml"
_STOPS = (signal.SIGTERM, signal.SIGINT)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    add = parser.add_argument
    add("--config", type=Path, metavar="FILE", help="settings (default: configs/front.yaml)")
    add(
        "--service", type=Path, metavar="FILE",
        help="Serve config whose limits apply (default: configs/local.yaml)",
    )  # fmt: skip
    add("--check", action="store_true", help="only check the configuration")


def run(args: argparse.Namespace) -> int:
    """Run HAProxy until SIGTERM or SIGINT, which let requests in flight finish.

    SIGHUP reloads settings and certificate.
    """

    def configuration() -> str:
        settings = _settings(args.config)
        if settings.tls is not None and _is_world_readable(Path(settings.tls.certificate)):
            log(
                "warning: other users of this machine can read the TLS file, which holds the "
                "private key: chmod 600"
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
            return _supervise(front)
        except FrontError as exc:
            raise CommandError(str(exc)) from exc


def _supervise(front: Front) -> int:
    """Start HAProxy and handle signals one after the other until it has ended."""
    signals: SimpleQueue[int] = SimpleQueue()
    for signum in (*_STOPS, signal.SIGHUP, signal.SIGCHLD):
        signal.signal(signum, lambda number, frame: signals.put(number))
    front.start()
    while (status := front.ended()) is None:
        signum = signal.Signals(signals.get())
        if signum in _STOPS:
            front.stop()
        elif signum == signal.SIGHUP:
            try:
                front.start()
            except (FrontError, CommandError) as exc:
                log(f"not reloaded: {exc}")
    return status


def _is_world_readable(path: Path) -> bool:
    try:
        return bool(path.stat().st_mode & stat.S_IROTH)
    except OSError:
        return False  # HAProxy reports what is wrong with it


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
