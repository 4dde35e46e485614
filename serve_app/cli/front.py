"""``front``: runs the edge, HAProxy in front of the service (`serve_app.edge`)."""

from __future__ import annotations

import argparse
import signal
import stat
import tempfile
from pathlib import Path
from queue import SimpleQueue

from pydantic import ValidationError

from serve_app.cli import CommandError, log
from serve_app.cli.configuration import load_settings, read_yaml
from serve_app.edge.haproxy import EdgeError, EdgeProxy
from serve_app.edge.settings import EdgeSettings, render

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
        content = read_yaml(args.config, "front.yaml", "edge settings")
        try:
            settings = EdgeSettings.model_validate(content or {})
        except ValidationError as exc:
            name = "front.yaml" if args.config is None else args.config.name
            raise CommandError(f"the edge settings {name}: {exc}") from exc
        if settings.tls is not None and _is_world_readable(Path(settings.tls.certificate)):
            log(
                "warning: the TLS file, which contains the private key, is readable by all users: "
                "chmod 600"
            )
        limits = [service.limits for service in load_settings(args.service)]
        return render(settings, max(each.max_body_bytes for each in limits))

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
