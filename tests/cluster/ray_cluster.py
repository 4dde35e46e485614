"""A Ray cluster of one node, of real processes, on ports and in a folder of its own.

Nothing of it touches another Ray on the machine, and it ends by the process ids it started:
``ray start --block`` leads a session (in the sense of setsid) to which all its processes belong,
so whatever outlives it is found by that session's id.
"""

from __future__ import annotations

import gc
import os
import secrets
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from shutil import rmtree
from typing import Any

import httpx
import pytest
import yaml

from serve_app.deployments.compat.environment import ray_environment

from ..ports import free_ports

START_TIMEOUT_S = 300.0
STOP_TIMEOUT_S = 60.0
_POLL_S = 0.2


def wait_until(met: Callable[[], bool], what: str, timeout_s: float) -> float:
    """Poll until ``met``; answers the seconds it took."""
    started = time.monotonic()
    while not met():
        if time.monotonic() - started > timeout_s:
            raise TimeoutError(f"not within {timeout_s:.0f} s: {what}")
        time.sleep(_POLL_S)
    return time.monotonic() - started


def session_members(session: int) -> list[int]:
    """Process ids of a session, zombies left out."""
    members = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            # "pid (name, with anything in it) state ppid pgrp session ..."
            fields = (entry / "stat").read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(fields[3]) == session and fields[0] != "Z":
            members.append(int(entry.name))
    return members


def _read_token_anew() -> None:
    """Ray reads mode and token once, when it is imported."""
    from ray._raylet import AuthenticationTokenLoader, Config

    Config.initialize("")
    AuthenticationTokenLoader.instance().reset_cache()


def _stop_reports() -> None:
    """End what Serve's handles report to the controller for as long as this process lives.

    Without a cluster, the next report would start another Ray by itself.
    """
    from ray._private import auto_init_hook
    from ray.serve._private.metrics_utils import MetricsPusher
    from ray.serve._private.router import SingletonThreadRouter

    auto_init_hook.enable_auto_connect = False
    if (loop := SingletonThreadRouter._asyncio_loop) is not None:
        for pusher in [found for found in gc.get_objects() if type(found) is MetricsPusher]:
            loop.call_soon_threadsafe(pusher.stop_tasks)


class RayCluster:
    """``ray start --head`` as a child process, with ``serve deploy`` and the dashboard's API.

    Args:
        num_gpus, num_cpus: what the node claims to have, whatever is there behind the claim.

    Attributes:
        drivers: how often this process has been a driver, of any cluster.
    """

    drivers = 0

    def __init__(self, num_gpus: int, num_cpus: int = 2) -> None:
        # Below /tmp, not in pytest's folder: a Unix socket's path has at most 107 bytes.
        self.folder = Path(tempfile.mkdtemp(prefix="ray-", dir="/tmp"))
        self.log = self.folder / "start.log"
        gcs, dashboard, agent, client = free_ports(4)
        self.address = f"127.0.0.1:{gcs}"
        self.dashboard = f"http://127.0.0.1:{dashboard}"
        self.environment = {
            **os.environ,
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": secrets.token_hex(16),
            # Callers too: else they look for it at this machine's other address.
            "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_raylet_start_wait_time_s": "120",  # on a busy machine
            # Else Ray kills replicas where others use the machine's memory.
            "RAY_memory_monitor_refresh_ms": "0",
            "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
            "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": (
                "serve_app.deployments.compat.proxy:middlewares"
            ),
            # Nobody else uses this node: there is nothing to drain before it ends.
            "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0",
        }
        self.environment.pop("RAY_ADDRESS", None)
        options = {
            "--node-ip-address": "127.0.0.1",
            "--port": gcs,
            "--dashboard-host": "127.0.0.1",
            "--dashboard-port": dashboard,
            "--dashboard-agent-listen-port": agent,
            "--ray-client-server-port": client,
            "--min-worker-port": 0,
            "--max-worker-port": 0,
            "--num-cpus": num_cpus,
            "--num-gpus": num_gpus,
            "--object-store-memory": 256 * 2**20,
            "--temp-dir": self.folder,
        }
        command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block"]
        command += [str(word) for option in options.items() for word in option]
        with self.log.open("wb") as log:
            self._head = subprocess.Popen(
                command,
                stdout=log,
                stderr=subprocess.STDOUT,
                # As `make serve` sets Ray up; callers have none of it.
                env={**ray_environment(self.folder), **self.environment},
                start_new_session=True,
            )

    @property
    def session(self) -> int:
        """To which all of its processes belong; see `session_members`."""
        return self._head.pid

    def wait_until_up(self) -> None:
        """Until the dashboard takes Serve's configurations."""

        def up() -> bool:
            if self._head.poll() is not None:
                raise RuntimeError(f"ray start ended:\n{self.log.read_text()[-4000:]}")
            try:
                return self._applications(timeout_s=30).is_success
            except httpx.HTTPError:
                return False

        wait_until(up, "the dashboard answers", START_TIMEOUT_S)

    def deploy(self, config: dict[str, Any]) -> None:
        """``serve deploy`` of a configuration."""
        path = self.folder / "deploy.yaml"
        path.write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")
        command = [sys.executable, "-m", "ray.serve.scripts", "deploy", str(path)]
        subprocess.run(
            [*command, "--address", self.dashboard],
            check=True,
            env=self.environment,
            capture_output=True,
            timeout=START_TIMEOUT_S,
        )

    def applications(self) -> dict[str, Any]:
        """What Serve says of each application: status, deployments, replicas."""
        answer = self._applications(timeout_s=60)
        answer.raise_for_status()
        applications: dict[str, Any] = answer.json()["applications"]
        return applications

    def _applications(self, timeout_s: float) -> httpx.Response:
        return httpx.get(
            f"{self.dashboard}/api/serve/applications/",
            headers={"authorization": f"Bearer {self.environment['RAY_AUTH_TOKEN']}"},
            timeout=timeout_s,
            trust_env=False,
        )

    @contextmanager
    def driver(self, **options: Any) -> Iterator[None]:
        """This process as a Python caller of the cluster, with ``ray.init``'s options."""
        import ray
        from ray.serve.context import _disconnect

        RayCluster.drivers += 1
        with pytest.MonkeyPatch.context() as patch:
            for name, value in self.environment.items():
                if name.startswith("RAY_"):
                    patch.setenv(name, value)
            patch.setattr("ray._private.ray_constants.ENABLE_RAY_CLUSTER", False)
            _read_token_anew()
            ray.init(address=self.address, log_to_driver=False, configure_logging=False, **options)
            try:
                yield
            finally:
                _stop_reports()
                # Serve's client outlives this session, and takes the next cluster's for this one.
                _disconnect()
                ray.shutdown()
        _read_token_anew()

    def replicas(self, application: str) -> dict[str, list[dict[str, Any]]]:
        """Running replicas of an application by deployment."""
        deployments = self.applications()[application]["deployments"]
        return {
            name: [r for r in told["replicas"] if r["state"] == "RUNNING"]
            for name, told in deployments.items()
        }

    def stop(self) -> list[int]:
        """End everything; answers the processes that had to be killed one by one."""
        if self._head.poll() is None:
            self._head.send_signal(signal.SIGTERM)
            try:
                self._head.wait(STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                self._head.kill()
                self._head.wait()
        # Ray's own processes leave when the raylet is gone, a moment after it.
        session, killed = self._head.pid, []
        try:
            wait_until(lambda: not session_members(session), "all have left", 10.0)
        except TimeoutError:
            killed = session_members(session)
            for pid in killed:
                os.kill(pid, signal.SIGKILL)
            wait_until(lambda: not session_members(session), "all are dead", 10.0)
        rmtree(self.folder, ignore_errors=True)
        return killed
