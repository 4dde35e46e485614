"""``serve``: weights, Ray, the graph, a demonstration, and then requests until Ctrl-C.

Runs Ray Serve's own ``serve run`` as a child process, so that this command shows nothing that
``serve run configs/local.yaml`` would not do too.  But it stops in good order: requests under way
are answered first, while new ones are refused.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from types import FrameType
from typing import Any

import yaml

from serve_app.cli import CommandError
from serve_app.cli.configuration import (
    DEFAULT_CONFIG,
    load_settings,
    needed_models,
    unavailable_variants,
)
from serve_app.cli.models import fetch_models
from serve_app.core.exposure import exposure_warning
from serve_app.deployments.compat.environment import ray_command, whole_environment
from serve_app.deployments.compat.inventory import RayChanged, check
from serve_tools.cli.measure import measure_once

_READY_TIMEOUT_S = 300.0
_STOP_TIMEOUT_S = 60.0
_DRAIN_TIMEOUT_S = 30.0
_POLL_S = 0.25
_QUIET = 3
"""Times in a row that nothing is under way: of several ingress replicas any may answer."""
_LOG_TAIL = 25


def add_parser(subparsers: Any) -> None:
    """Register the command."""
    parser = subparsers.add_parser("serve", help="fetch weights, start the graph on this machine")
    parser.add_argument("--config", type=Path, help="a Serve config file (configs/local.yaml)")
    parser.add_argument("--port", type=int, help="HTTP port instead of the config's")
    parser.add_argument("--demo", action="store_true", help="segment sample photos when ready")
    parser.add_argument(
        "--no-measure", dest="measure", action="store_false",
        help="do not measure variants that were not measured on this host yet",
    )  # fmt: skip
    parser.add_argument("--once", action="store_true", help="stop after the demonstration")
    parser.add_argument(
        "--drain", type=float, default=_DRAIN_TIMEOUT_S, metavar="SECONDS",
        help="how long requests under way are waited for when it is to stop",
    )  # fmt: skip
    parser.add_argument(
        "--out", type=Path, default=Path("out"), help="folder of the pictures and the log"
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Serve until interrupted."""
    _check_ray()
    config = _read_config(args.config)
    http = config.setdefault("http_options", {})
    if args.port is not None:
        http["port"] = args.port
    host, port = http.get("host", "127.0.0.1"), int(http.get("port", 8000))
    url = f"http://{'127.0.0.1' if host == '0.0.0.0' else host}:{port}"  # noqa: S104
    _check_port(host, port)
    missing = set(fetch_models(args.config))
    needed = missing & set().union(*map(needed_models, load_settings(args.config)))
    if needed:
        raise CommandError(f"without these weights the graph does not start: {sorted(needed)}")
    if missing:
        print(f"warning: variants of {sorted(missing)} will not answer", file=sys.stderr)

    for settings in load_settings(args.config):
        if warning := exposure_warning(settings.security, host):
            print(f"warning: {warning}", file=sys.stderr)
    for variant, reason in unavailable_variants(args.config).items():
        print(f"note: {variant} is served by its reference: {reason}", file=sys.stderr)
    if args.measure:
        measure_once(args.config)
    args.out.mkdir(parents=True, exist_ok=True)
    log_path = args.out / "serve.log"
    # SIGTERM ends this command as Ctrl-C does: the child is told, Ray's processes go.  SIGINT is
    # set too: a shell's background jobs, and their children with them, are started to ignore it.
    for signum in (signal.SIGTERM, signal.SIGINT):
        signal.signal(signum, _interrupt)
    print(f"starting Ray and the graph (log: {log_path}) ...", flush=True)
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder, log_path.open("wb") as log:
        config_path, sign = Path(folder) / "serve.yaml", Path(folder) / "draining"
        _set_ingress(config, drain_file=str(sign), http_host=host)
        config_path.write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")
        child = _start(config_path, log, whole_environment(Path(folder)))
        try:
            _wait_until_ready(child, url, log_path)
            print(f"ready after {time.monotonic() - started:.0f} s", flush=True)
            if args.demo:
                _demonstrate(url, args.out)
                _say_how(url, args.out / "photo.jpg")
            if not args.once:
                print("serving until Ctrl-C", flush=True)
                child.wait()
                raise CommandError(f"the graph stopped by itself; see {log_path}")
        except KeyboardInterrupt:
            print("\nstopping ...", flush=True)
        finally:
            prefixes = [app.get("route_prefix", "/") for app in config["applications"]]
            try:
                _drain(child, [url + prefix.rstrip("/") for prefix in prefixes], sign, args.drain)
            finally:
                _stop(child)
    return 0


def _interrupt(signum: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _check_ray() -> None:
    try:
        check()
    except RayChanged as exc:
        raise CommandError(str(exc)) from exc


def _read_config(path: Path | None) -> dict[str, Any]:
    source = path or resources.files("configs").joinpath(DEFAULT_CONFIG)
    load_settings(path)
    content: dict[str, Any] = yaml.safe_load(source.read_text(encoding="utf-8"))
    return content


def _check_port(host: str, port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as exc:
            raise CommandError(
                f"port {port} is taken; stop what uses it or choose another: make serve PORT=8001"
            ) from exc


def _start(config: Path, log: Any, environment: Mapping[str, str]) -> subprocess.Popen[bytes]:
    # "local": never join a cluster that happens to run on this machine.
    command = [ray_command("serve"), "run", "--address", "local", str(config)]
    # A session of its own: Ctrl-C at the terminal reaches this command alone, which passes it on.
    return subprocess.Popen(  # noqa: S603
        command, stdout=log, stderr=subprocess.STDOUT, env=environment, start_new_session=True
    )


def _wait_until_ready(child: subprocess.Popen[bytes], url: str, log: Path) -> None:
    import httpx

    deadline = time.monotonic() + _READY_TIMEOUT_S
    while time.monotonic() < deadline:
        if child.poll() is not None:
            raise CommandError(f"the graph did not start:\n{_tail(log)}")
        try:
            if httpx.get(f"{url}/readyz", timeout=10, trust_env=False).is_success:
                return
        except httpx.HTTPError:
            pass
        time.sleep(_POLL_S)
    raise CommandError(f"the graph was not ready within {_READY_TIMEOUT_S:.0f} s:\n{_tail(log)}")


def _tail(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    return "\n".join(lines[-_LOG_TAIL:])


def _demonstrate(url: str, out: Path) -> None:
    from serve_app.cli.demo import run_demo
    from serve_app.core.errors import SamServeError

    try:
        asyncio.run(run_demo(url, out))
    except SamServeError as exc:
        raise CommandError(f"the demonstration failed: {exc.message} ({exc.code})") from exc
    print(f"pictures: {out}/summary.png and one for each row")


def _say_how(url: str, photo: Path) -> None:
    print(
        f"\n{url}/docs\n"
        f"curl -F file=@{photo} -F 'box=[75, 75, 400, 290]' {url}/v1/segment\n"
        f"curl -F file=@{photo} -F text=cat {url}/v1/segment",
        flush=True,
    )


def _set_ingress(config: dict[str, Any], **settings: str) -> None:
    """Set members of ``ingress`` in all applications."""
    for application in config["applications"]:
        arguments = application["args"] = dict(application.get("args") or {})
        arguments["ingress"] = {**(arguments.get("ingress") or {}), **settings}


def _drain(child: subprocess.Popen[bytes], urls: Sequence[str], sign: Path, seconds: float) -> None:
    """Wait until nothing is under way any more; another Ctrl-C ends that."""
    end = time.monotonic() + seconds
    try:
        sign.touch()
        quiet = 0
        while child.poll() is None and time.monotonic() < end and quiet < _QUIET:
            quiet = 0 if any(map(_has_work, urls)) else quiet + 1
            time.sleep(_POLL_S)
    except KeyboardInterrupt:
        print("not waiting for requests under way", flush=True)


def _has_work(url: str) -> bool:
    """Whether requests are under way; a service too busy to tell has some."""
    import httpx

    try:
        told = httpx.get(f"{url}/readyz", timeout=10, trust_env=False).json()
        return not (isinstance(told, dict) and told.get("in_flight") == 0)
    except httpx.ConnectError:
        return False
    except (httpx.HTTPError, ValueError):
        return True


def _stop(child: subprocess.Popen[bytes]) -> None:
    """End ``serve run`` as Ctrl-C does; it takes its Ray processes with it."""
    if child.poll() is not None:
        return
    # A second Ctrl-C or SIGTERM must not leave Ray's processes behind.
    for signum in (signal.SIGTERM, signal.SIGINT):
        signal.signal(signum, signal.SIG_IGN)
    child.send_signal(signal.SIGINT)
    try:
        child.wait(_STOP_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        os.killpg(child.pid, signal.SIGKILL)
        child.wait()
