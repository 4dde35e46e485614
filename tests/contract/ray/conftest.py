"""One real Ray for each module that asks for it."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from ray import serve

from tests.cluster.ray_cluster import RayCluster, free_ports

# Ray reads this when it is imported; otherwise it writes a token to the user's home.
os.environ["RAY_AUTH_MODE"] = "disabled"


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    """The address of an empty Serve that this process is a driver of."""
    cluster = RayCluster(num_gpus=0)
    try:
        cluster.wait_until_up()
        (port,) = free_ports(1)
        with cluster.driver():
            serve.start(http_options={"host": "127.0.0.1", "port": port})
            yield f"http://127.0.0.1:{port}"
    finally:
        cluster.stop()
