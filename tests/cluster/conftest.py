"""One real Ray cluster for all tests of this folder, with the local configuration deployed."""

from __future__ import annotations

import copy
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from serve_app.core.settings import GraphSettings

from ..ports import free_ports
from .ledger_file import write_ledger
from .ray_cluster import RayCluster, wait_until

# Ray reads this when it is imported; unless told not to it writes a token to the user's home.
os.environ["RAY_AUTH_MODE"] = "disabled"

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
READY_TIMEOUT_S = 420.0


@dataclass(frozen=True)
class Served:
    """A deployed configuration.

    Attributes:
        replicas_before_requests: running replicas by deployment when it had just become ready.
    """

    cluster: RayCluster
    config: dict[str, Any]
    url: str
    replicas_before_requests: dict[str, int]


@pytest.fixture(scope="package")
def ray_cluster() -> Iterator[RayCluster]:
    # One pretend GPU: whatever of it is placed shares it.
    cluster = RayCluster(num_gpus=1)
    try:
        cluster.wait_until_up()
        yield cluster
    finally:
        cluster.stop()


@pytest.fixture(scope="package")
def served(ray_cluster: RayCluster) -> Served:
    """``configs/local.yaml``, on a port of its own."""
    config = yaml.safe_load((CONFIGS / "local.yaml").read_text("utf-8"))
    (port,) = free_ports(1)
    config["http_options"]["port"] = port
    # As in production, and every trace: written to files in the cluster's folder.
    config["logging_config"]["encoding"] = "JSON"
    config["tracing_config"] = {
        "enabled": True,
        "exporter_import_path": "serve_app.deployments.tracing:exporter",
        "sampling_ratio": 1.0,
    }
    application = config["applications"][0]
    arguments = application["args"]
    arguments["capabilities"] = ["tests.toy_capability"]
    application["runtime_env"] = {"env_vars": {"PYTHONPATH": str(CONFIGS.parent)}}
    # A busy machine has time for a second answer, too.
    arguments["router"]["cascade_max_ms"] = 250_000
    ledger = ray_cluster.folder / "ledger.json"
    arguments["measurements"] = {"path": str(ledger)}
    write_ledger(GraphSettings.model_validate(arguments), ledger)
    url = f"http://127.0.0.1:{port}"
    ray_cluster.deploy(config)
    wait_until_ready(url, ray_cluster)
    before = {name: len(found) for name, found in ray_cluster.replicas("sam").items()}
    return Served(ray_cluster, config, url, before)


@pytest.fixture
def http(served: Served) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=served.url, timeout=300, trust_env=False) as client:
        yield client


@pytest.fixture(scope="package")
def driver(served: Served) -> Iterator[None]:
    """This process as a Python caller of the cluster."""
    with served.cluster.driver():
        yield


@pytest.fixture(scope="module")
def placed(served: Served) -> Iterator[Served]:
    """Two more applications beside the local one, without disturbing it.

    ``gpus``: the placement of ``configs/gpu.yaml`` on the pretend GPU, with a CPU and MobileSAM
    for both variants as stand-ins.  ``clicks``: the interactive graph, which is fused.
    """
    local = served.config["applications"][0]["args"]
    gpus = yaml.safe_load((CONFIGS / "gpu.yaml").read_text("utf-8"))["applications"][0]["args"]
    for variant in gpus["variants"].values():
        variant["model"] = "vit_t"
        for half in ("encoder", "decoder"):
            variant[half]["compute"] = copy.deepcopy(
                local["variants"]["fast"][half]["compute"]  # device cpu
            )
            variant[half]["ray_actor_options"]["num_cpus"] = 0.1
    for part in ("ingress", "proposals"):
        gpus[part]["ray_actor_options"]["num_cpus"] = 0.1
    gpus.update(text=None)
    GraphSettings.model_validate(gpus)
    more = [
        {
            "name": "gpus",
            "route_prefix": "/gpus",
            "import_path": "graphs.full:build",
            "args": gpus,
            "autoscaling_policy": {
                "policy_function": "serve_app.deployments.autoscaling:BudgetPolicy",
                "policy_kwargs": {"graph": gpus},
            },
        },
        {
            "name": "clicks",
            "route_prefix": "/clicks",
            "import_path": "graphs.interactive:build",
            "args": local,
        },
    ]
    config = {**served.config, "applications": [*served.config["applications"], *more]}
    served.cluster.deploy(config)
    for application in more:
        wait_until_ready(served.url + str(application["route_prefix"]))
    # /readyz asks for the default variant alone.
    wait_until(
        lambda: {a["status"] for a in served.cluster.applications().values()} == {"RUNNING"},
        "all replicas of all applications run",
        READY_TIMEOUT_S,
    )
    yield served
    served.cluster.deploy(served.config)
    wait_until(
        lambda: set(served.cluster.applications()) == {"sam"},
        "the others are gone",
        READY_TIMEOUT_S,
    )


def wait_until_ready(url: str, cluster: RayCluster | None = None) -> None:
    """Until ``/readyz`` says so; at once an error where the cluster knows that it never will."""

    def ready() -> bool:
        if cluster is not None:
            for name, told in cluster.applications().items():
                if told["status"] == "DEPLOY_FAILED":
                    why = [d["message"][-600:] for d in told["deployments"].values()]
                    raise RuntimeError("\n".join([f"{name} is not deployed", *filter(None, why)]))
        try:
            return httpx.get(f"{url}/readyz", timeout=60, trust_env=False).is_success
        except httpx.HTTPError:
            return False

    wait_until(ready, f"{url}/readyz", READY_TIMEOUT_S)
