"""The simulator's service times against the real service, on one machine in one run.

    python -m tests.cluster.prediction

measures *fast* on this host, serves ``configs/local.yaml`` on a Ray of its own, sends Poisson
arrivals over HTTP, and prints the medians that the simulator predicts and that were measured.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import httpx
import numpy as np
import yaml

from serve_app.core.measurements import Profile
from serve_app.core.settings import GraphSettings
from serve_app.models.registry import load_registry
from serve_tools.bench.load import open_loop, recorded
from serve_tools.profiling.protocol import QUICK
from serve_tools.profiling.runner import measure
from serve_tools.simulation.live import predict
from serve_tools.simulation.scenario import scales, with_profiles

from ..golden.cases import photo
from ..ports import free_ports
from .conftest import CONFIGS, wait_until_ready
from .ray_cluster import RayCluster
from .test_http import new_photo, png

EFFORT = QUICK.model_copy(
    update={"images": 2, "forms": ("box-1", "point-3"), "repeats": 9, "budget_s": 15}
)
POINT = {"point_coords": [[200, 120]], "point_labels": [1]}


@dataclass(frozen=True)
class Load:
    """Requests a second, and the share of them with an image that nobody has seen."""

    rate: float
    new: float


LOADS = (Load(0.2, 1.0), Load(0.5, 0.8), Load(0.8, 0.7), Load(5.0, 0.0))


async def median_ms(url: str, load: Load, seconds: float, seed: int) -> float:
    """Median over HTTP of requests that do not wait for each other."""
    rng = np.random.default_rng(seed)
    async with httpx.AsyncClient(base_url=url, timeout=120, trust_env=False) as client:
        answer = await client.post("/v1/embed", files={"file": png(photo("chelsea"))})
        known = answer.raise_for_status().json()["image_id"]
        images: list[bytes | None] = []

        def due() -> Iterator[float]:
            after = 0.0
            while (after := after + rng.exponential(1 / load.rate)) < seconds:
                images.append(png(new_photo()) if rng.random() < load.new else None)
                yield after

        async def send(number: int) -> Mapping[str, float]:
            await _segment(client, images[number], known)
            return {}

        window = await open_loop(recorded(send), due())
        return window.quantile_ms(0.5)


async def _segment(client: httpx.AsyncClient, image: bytes | None, known: str | None) -> None:
    request = {"prompts": [POINT], "variant": "fast"}
    if image is None:
        answer = await client.post("/v1/segment", json={**request, "image_id": known})
    else:
        form = {"request": json.dumps(request)}
        answer = await client.post("/v1/segment", files={"file": image}, data=form)
    answer.raise_for_status()


def profile_of(settings: GraphSettings) -> Profile:
    """What *fast* costs here, now."""
    print("measuring fast on this host ...", flush=True)
    found = measure(settings, load_registry(), ["fast"], EFFORT, lambda text: None)
    if found.ledger is None:
        raise SystemExit(f"fast could not be measured: {found.failures}")
    return found.ledger.entries["fast"].profile


def main() -> None:
    """Measure, serve, load, predict, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--seconds", type=float, default=60.0, help="of each load")
    args = parser.parse_args()
    os.environ["RAY_AUTH_MODE"] = "disabled"
    config = yaml.safe_load((CONFIGS / "local.yaml").read_text("utf-8"))
    config["applications"][0]["args"]["text"] = None
    profile = profile_of(GraphSettings.model_validate(config["applications"][0]["args"]))
    (port,) = free_ports(1)
    config["http_options"]["port"] = port
    url = f"http://127.0.0.1:{port}"
    cluster = RayCluster(num_gpus=0)
    rows = []
    try:
        cluster.wait_until_up()
        cluster.deploy(config)
        wait_until_ready(url)
        for seed, load in enumerate(LOADS):
            measured = asyncio.run(median_ms(url, load, args.seconds, seed))
            scale = with_profiles(scales()["2-cores"], {"fast": profile})
            told = predict(scale, rate=load.rate, new=load.new, seed=seed)["p50_ms"]
            rows.append((load, told, measured))
    finally:
        cluster.stop()
    print(f"\nfast: encode {profile.encode_ms}, decode {profile.decode_ms} ms\n")
    print("| requests/s | new images | predicted p50 ms | measured p50 ms | ratio |")
    print("|--:|--:|--:|--:|--:|")
    for load, told, measured in rows:
        ratio = told / measured
        print(f"| {load.rate:g} | {load.new:.0%} | {told:,.0f} | {measured:,.0f} | {ratio:.2f} |")


if __name__ == "__main__":
    main()
