"""``front``: runs the edge, HAProxy in front of the service (`serve_app.edge`)."""

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
from serve_app.edge.haproxy import EdgeError, EdgeProxy
from serve_app.edge.render import render
from serve_app.edge.settings import EdgeSettings, load_edge_settings

_DEFAULT = "front.yaml"
_STOPS = (signal.SIGTERM, signal.SIGINT)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    add = parser.add_argument
    add("--config", type=Path, metavar="FILE", help="settings (default: configs/front.yaml)")
    add(
        "--service", type=Path, metavar="FILE",
        help="Serve config with the limits to enforce (default: configs/local.yaml)",
    )  # fmt: skip
    add("--check", action="store_true", help="only validate the configuration")


def run(args: argparse.Namespace) -> int:
    """Run HAProxy in the foreground.

    SIGTERM and SIGINT drain it: requests in flight finish.  SIGHUP reloads its settings and its
    certificate.
    """

    def configuration() -> str:
        settings = _settings(args.config)
        if settings.tls is not None and _is_world_readable(Path(settings.tls.certificate)):
            log(
                "warning: the TLS file, which contains the private key, is readable by all users: "
                "chmod 600"
            )
        return render(settings, _max_body_bytes(args.service))

    # TemporaryDirectory makes it readable by this user only.
    with tempfile.TemporaryDirectory(prefix="sam-front-") as folder:
        try:
            proxy = EdgeProxy(configuration, Path(folder))
            if args.check:
                proxy.check()
                print("the edge configuration is valid")
                return 0
            return _supervise(proxy)
        except EdgeError as exc:
            raise CommandError(str(exc)) from exc


def _supervise(proxy: EdgeProxy) -> int:
    """Start HAProxy and handle signals one by one until it has exited; returns its exit status."""
    signals: SimpleQueue[int] = SimpleQueue()
    for signum in (*_STOPS, signal.SIGHUP, signal.SIGCHLD):
        signal.signal(signum, lambda number, frame: signals.put(number))
    proxy.start()
    while (status := proxy.exit_status()) is None:
        signum = signal.Signals(signals.get())
        if signum in _STOPS:
            proxy.stop()
        elif signum == signal.SIGHUP:
            try:
                proxy.start()
            except (EdgeError, CommandError) as exc:
                log(f"not reloaded: {exc}")
    return status


def _is_world_readable(path: Path) -> bool:
    try:
        return bool(path.stat().st_mode & stat.S_IROTH)
    except OSError:
        return False  # HAProxy reports the reason


def _settings(path: Path | None) -> EdgeSettings:
    name = _DEFAULT if path is None else path.name
    try:
        if path is not None:
            return load_edge_settings(path)
        with resources.as_file(resources.files("configs").joinpath(_DEFAULT)) as default:
            return load_edge_settings(default)
    except OSError as exc:
        raise CommandError(f"the edge settings {name} cannot be read") from exc
    except yaml.YAMLError as exc:
        raise CommandError(f"the edge settings {name} are not YAML: {exc}") from exc
    except ValidationError as exc:
        raise CommandError(f"the edge settings {name}: {exc}") from exc


def _max_body_bytes(service: Path | None) -> int:
    """The largest limit of the applications in a Serve config file."""
    return max(settings.limits.max_body_bytes for settings in load_settings(service))
