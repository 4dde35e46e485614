"""``serve``: fetch weights, start Ray and the graph, optionally run the demonstration, then serve.

Runs Ray Serve's own ``serve run`` as a child process, so the graph runs as with
``serve run configs/local.yaml``.  When it is stopped it drains: new requests are
rejected, and requests in flight finish.
"""

from __future__ import annotations

import argparse
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx
import yaml

from serve_app.cli import CommandError, log
from serve_app.cli.commands import COMMANDS, ToolsMissing
from serve_app.cli.configuration import load_plans, needed_models, read_config
from serve_app.cli.fetch import fetch_models
from serve_app.cli.processes import NotReady, start, stop, wait_until_ready
from serve_app.deployments.compat.environment import ray_command, whole_environment
from serve_app.deployments.compat.inventory import RayChanged, check
from serve_app.profiles.plan import Plan

_DRAIN_TIMEOUT_S = 30.0
_POLL_S = 0.25
_IDLE_POLLS = 3
"""Consecutive polls without a request in flight: each may reach another ingress replica."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    add = parser.add_argument
    add("--config", type=Path, metavar="FILE", help="Serve config (default: configs/local.yaml)")
    add("--port", type=int, help="HTTP port instead of the config's")
    add("--demo", action="store_true", help="run the command demo when ready")
    add(
        "--no-measure", dest="measure", action="store_false",
        help="do not measure the variants on a host without measurements",
    )  # fmt: skip
    add("--once", action="store_true", help="stop when ready, after the demonstration if any")
    add(
        "--drain", type=float, default=_DRAIN_TIMEOUT_S, metavar="SECONDS",
        help="how long to wait for requests in flight when stopping (default: %(default)s)",
    )  # fmt: skip
    add("--out", type=Path, default=Path("out"), help="folder of the log and the pictures")


def run(args: argparse.Namespace) -> int:
    """Serve until interrupted."""
    try:
        for warning in check():
            log(f"warning: {warning}")
    except RayChanged as exc:
        raise CommandError(str(exc)) from exc
    config, plans = read_config(args.config), load_plans(args.config)
    http = config.setdefault("http_options", {})
    if args.port is not None:
        http["port"] = args.port
    host, port = http.get("host", "127.0.0.1"), int(http.get("port", 8000))
    _check_port(host, port)
    _check_weights(args.config, plans)
    _warn(plans, host)
    if args.measure and _measure_once(plans[0]):
        plans = load_plans(args.config)
    _tell_cascade(plans[0])
    args.out.mkdir(parents=True, exist_ok=True)
    _set_ingress(config, http_host=host)
    # SIGTERM stops this command as Ctrl-C does.  SIGINT is set too: a shell starts background jobs
    # with SIGINT ignored, and their children inherit that.
    for signum in (signal.SIGTERM, signal.SIGINT):
        signal.signal(signum, signal.default_int_handler)
    _serve(config, f"http://{'127.0.0.1' if host == '0.0.0.0' else host}:{port}", args)  # noqa: S104
    return 0


def _check_weights(config: Path | None, plans: Sequence[Plan]) -> None:
    missing = set(fetch_models(config))
    needed = missing & set().union(*(needed_models(plan.settings) for plan in plans))
    if needed:
        raise CommandError(f"without these weights the graph does not start: {sorted(needed)}")
    if missing:
        log(f"warning: variants of {sorted(missing)} will be unavailable")


def _warn(plans: Sequence[Plan], host: str) -> None:
    for plan in plans:
        if warning := plan.settings.security.exposure_warning(host):
            log(f"warning: {warning}")
        for variant, reason in plan.unavailable.items():
            log(f"note: {variant} falls back to its reference: {reason}")


def _measure_once(plan: Plan) -> bool:
    """Measure quickly if there are no measurements of this host; failures are not fatal.

    Returns:
        Whether there may be new measurements.
    """
    if plan.measurements.entries:
        # Measurements made with more effort must not be replaced by quick ones.
        for warning in plan.measurements.warnings:
            log(f"note: {warning}")
        return False
    try:
        tool = COMMANDS["measure"].load()
    except ToolsMissing as exc:
        log(f"note: the variants are not measured on this host; {exc}")
        return False
    tool.measure_quickly(plan.settings, plan.registry)
    return True


def _tell_cascade(plan: Plan) -> None:
    """Say that the cascade is off, and how to switch it on: results differ, and nothing fails."""
    router = plan.settings.router
    if router.cascade_to is None:
        log("note: the cascade is off; router.cascade_to in the configuration names its variant")
    elif not plan.measurements.escalation.get(f"{router.default}>{router.cascade_to}"):
        log(
            f"note: the cascade from {router.default} to {router.cascade_to} is off: it has no "
            "rules yet, which `make measure` (python -m serve_app measure) fits in some minutes"
        )


def _serve(config: dict[str, Any], url: str, args: argparse.Namespace) -> None:
    log_path = args.out / "serve.log"
    print(f"starting Ray and the graph (log: {log_path}) ...", flush=True)
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder, log_path.open("wb") as log_file:
        config_path, drain_file = Path(folder) / "serve.yaml", Path(folder) / "draining"
        _set_ingress(config, drain_file=str(drain_file))
        config_path.write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")
        # "local": never join a cluster that happens to run on this machine.
        command = [ray_command("serve"), "run", "--address", "local"]
        child = start([*command, str(config_path)], log_file, whole_environment(Path(folder)))
        try:
            wait_until_ready(child, f"{url}/readyz", log_path)
            print(f"ready after {time.monotonic() - started:.0f} s", flush=True)
            if args.demo:
                from serve_app.cli.demo import demonstrate

                demonstrate(url, args.out)
            if not args.once:
                print("serving until Ctrl-C", flush=True)
                child.wait()
                raise CommandError(f"the graph stopped unexpectedly; see {log_path}")
        except NotReady as exc:
            raise CommandError(f"the graph {exc}") from exc
        except KeyboardInterrupt:
            print("\nstopping ...", flush=True)
        finally:
            prefixes = [app.get("route_prefix", "/") for app in config["applications"]]
            urls = [url + prefix.rstrip("/") for prefix in prefixes]
            try:
                _drain(child, urls, drain_file, args.drain)
            finally:
                # Even if interrupted again.
                for signum in (signal.SIGTERM, signal.SIGINT):
                    signal.signal(signum, signal.SIG_IGN)
                stop(child)


def _check_port(host: str, port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as exc:
            raise CommandError(
                f"port {port} is taken; stop what uses it or choose another: make serve PORT=8001"
            ) from exc


def _set_ingress(config: dict[str, Any], **settings: str) -> None:
    """Set members of ``ingress`` in all applications."""
    for application in config["applications"]:
        arguments = application["args"] = dict(application.get("args") or {})
        arguments["ingress"] = {**(arguments.get("ingress") or {}), **settings}


def _drain(
    child: subprocess.Popen[bytes], urls: Sequence[str], drain_file: Path, seconds: float
) -> None:
    """Wait until no request is in flight; a second Ctrl-C ends the wait."""
    end = time.monotonic() + seconds
    try:
        drain_file.touch()
        idle = 0
        while child.poll() is None and time.monotonic() < end and idle < _IDLE_POLLS:
            idle = 0 if any(map(_is_busy, urls)) else idle + 1
            time.sleep(_POLL_S)
    except KeyboardInterrupt:
        print("not waiting for requests in flight", flush=True)


def _is_busy(url: str) -> bool:
    """Whether requests are in flight; a service too busy to respond has some."""
    try:
        state = httpx.get(f"{url}/readyz", timeout=10, trust_env=False).json()
        return not (isinstance(state, dict) and state.get("in_flight") == 0)
    except httpx.ConnectError:
        return False
    except (httpx.HTTPError, ValueError):
        return True
