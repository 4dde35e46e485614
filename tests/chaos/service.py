"""The application of fakes on a Ray of its own, and a look into its replicas."""

from __future__ import annotations

import os
import re
import signal
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import httpx

from ..cluster.ray_cluster import RayCluster, session_members, wait_until
from ..fakes.graph import application
from ..ports import free_ports
from .processes import processes_named, pss_bytes

READY_S = 180.0
APP = "faults"


@dataclass
class Service:
    """A deployed application of fakes; callable as ``/v1/...`` below ``url``."""

    cluster: RayCluster
    config: dict[str, Any]
    url: str
    app: str = APP

    def pids(self, role: str) -> list[int]:
        """Of the running replicas of a deployment."""
        return [int(r["pid"]) for r in self.cluster.replicas(self.app).get(role, [])]

    def roles(self) -> dict[str, set[int]]:
        """Process ids by deployment."""
        replicas = self.cluster.replicas(self.app)
        return {role: {int(r["pid"]) for r in found} for role, found in replicas.items()}

    def logs(self, role: str) -> list[str]:
        """Paths of the replicas' logs, the dead ones' too."""
        folder = self.cluster.folder / "session_latest/logs/serve"
        return sorted(map(str, folder.glob(f"replica_{self.app}_{role}_*.log")))

    def proxies(self) -> list[int]:
        """HAProxy and Serve's own proxy, whichever there is."""
        members = session_members(self.cluster.session)
        return processes_named(members, "haproxy") + processes_named(members, "ServeProxy")

    def metric(self, name: str) -> dict[str, float]:
        """A metric's samples by their ``outcome`` (or empty), of all replicas together."""
        page = httpx.get(f"{self.url}/metrics", timeout=10, trust_env=False).text
        found: dict[str, float] = {}
        for line in page.splitlines():
            if not line.startswith("#") and line.partition("{")[0] in (name, f"ray_{name}"):
                outcome = re.search(r'outcome="([^"]*)"', line)
                key = outcome.group(1) if outcome else ""
                found[key] = found.get(key, 0.0) + float(line.rsplit(" ", 1)[1])
        return found

    def redeploy(self, config: dict[str, Any]) -> None:
        """Deploy without waiting."""
        self.config = config
        self.cluster.deploy(config)

    def app_of(self, config: dict[str, Any]) -> dict[str, Any]:
        """This application in a configuration."""
        (found,) = (app for app in config["applications"] if app["name"] == self.app)
        app: dict[str, Any] = found
        return app

    def told(self) -> dict[str, Any]:
        """What Serve says of this application."""
        told: dict[str, Any] = self.cluster.applications()[self.app]
        return told

    def status(self) -> str:
        return str(self.told()["status"])

    def deployed(self) -> bool:
        """Whether it runs.

        Raises:
            RuntimeError: it never will.
        """
        if self.status() in ("DEPLOY_FAILED", "UNHEALTHY"):
            why = [self.told()["message"]]
            why += [told["message"] for told in self.told()["deployments"].values()]
            raise RuntimeError("\n".join(why))
        return self.status() == "RUNNING"

    def ongoing(self) -> dict[str, int]:
        """Requests that each replica has, as Serve counts them; needs `RayCluster.driver`."""
        import ray

        replicas = [
            (f"{role} {r['pid']}", r["actor_name"])
            for role, found in self.cluster.replicas(self.app).items()
            for r in found
        ]
        calls = [
            ray.get_actor(name, namespace="serve").get_num_ongoing_requests.remote()
            for _, name in replicas
        ]
        return dict(zip((who for who, _ in replicas), ray.get(calls, timeout=10), strict=True))

    def held(self) -> dict[str, dict[str, int]]:
        """What the fakes hold in batchers and threads; needs `RayCluster.driver`."""
        from ray import serve

        found = {}
        for role, replicas in self.cluster.replicas(self.app).items():
            if role == "ingress" or not replicas:
                continue
            handle = serve.get_deployment_handle(role, self.app)
            for told in handle.broadcast("held").results():
                found[f"{role} {told['pid']}"] = told
        return found

    def busy(self) -> dict[str, int]:
        """What has anything to do, by replica; needs `RayCluster.driver`."""
        found = {f"{who}: requests": count for who, count in self.ongoing().items()}
        for who, told in self.held().items():
            found |= {f"{who}: {what}": told[what] for what in ("waiting", "running")}
        return {what: count for what, count in found.items() if count}

    def done(self, size: tuple[int, int]) -> Counter[str]:
        """Items on images of a size that each role has worked on; needs `RayCluster.driver`."""
        return self._counted("done", size)

    def begun(self, size: tuple[int, int]) -> Counter[str]:
        """The same, those in a pass that has begun included."""
        return self._counted("begun", size)

    def _counted(self, what: str, size: tuple[int, int]) -> Counter[str]:
        counts: Counter[str] = Counter()
        for who, told in self.held().items():
            counts[who.split()[0]] += told.get("{} {}x{}".format(what, *size), 0)
        return counts


def wait_until_ready(url: str, timeout_s: float = READY_S) -> None:
    """Until ``/readyz`` says so."""

    def ready() -> bool:
        try:
            return httpx.get(f"{url}/readyz", timeout=10, trust_env=False).is_success
        except httpx.HTTPError:
            return False

    wait_until(ready, "/readyz", timeout_s)


def serve_config(args: dict[str, Any], port: int, **more: Any) -> dict[str, Any]:
    """A Serve config with the application of fakes at ``/``."""
    http = {"host": "127.0.0.1", "port": port, "request_timeout_s": 60}
    logs = {"log_level": "INFO"}
    apps = [application(APP, args, "/", **more)]
    return {"http_options": http, "logging_config": logs, "applications": apps}


def all_running(service: Service, counts: dict[str, int]) -> Callable[[], bool]:
    """Whether each deployment has so many running replicas, none of them dead or replaced.

    Serve takes a moment to see that a process is gone; the kernel knows it at once.
    """

    def running() -> bool:
        replicas = {role: t["replicas"] for role, t in service.told()["deployments"].items()}
        return all(
            [r["state"] for r in replicas[role]] == ["RUNNING"] * count
            and all(pss_bytes(int(r["pid"])) for r in replicas[role])
            for role, count in counts.items()
        )

    return running


@contextmanager
def serving(args: dict[str, Any], **more: Any) -> Iterator[Service]:
    """Start Ray, deploy the fakes, and end everything afterwards."""
    with serving_config(serve_config(args, 0, **more), APP) as service:
        yield service


@contextmanager
def serving_config(
    config: dict[str, Any], app: str, num_gpus: int = 0, num_cpus: int = 2
) -> Iterator[Service]:
    """The same with a configuration of any application, on a port of its own."""
    cluster = RayCluster(num_gpus, num_cpus)
    try:
        cluster.wait_until_up()
        (port,) = free_ports(1)
        config["http_options"]["port"] = port
        service = Service(cluster, config, f"http://127.0.0.1:{port}", app)
        cluster.deploy(config)
        wait_until(service.deployed, "the application is deployed", READY_S)
        wait_until_ready(service.url)
        yield service
    finally:
        cluster.stop()


def kill_and_wait(pid: int, patience_s: float = 120.0) -> None:
    """``kill -9``; returns when the process is gone."""
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
    wait_until(lambda: pss_bytes(pid) == 0, "the killed process is gone", patience_s)
