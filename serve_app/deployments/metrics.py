"""The metrics of all processes of the cluster as one page for Prometheus.

Ray runs a metrics agent on each node, which gathers what this service (``ray_sam_``) and Serve
(``ray_serve_``) count in the node's processes.  The names are those that a Prometheus finds which
scrapes the agents itself.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

import httpx
import ray

_TIMEOUT_S = 2.0
_WANTED = ("ray_sam_", "ray_serve_")


async def cluster_metrics() -> bytes:
    """The metrics of every node that answers, in Prometheus' text format."""
    nodes = await asyncio.to_thread(ray.nodes)
    addresses = [
        (node["NodeManagerAddress"], node["MetricsExportPort"])
        for node in nodes
        if node.get("Alive") and node.get("MetricsExportPort")
    ]
    async with httpx.AsyncClient(timeout=_TIMEOUT_S, trust_env=False) as client:
        pages = await asyncio.gather(*(_scrape(client, *address) for address in addresses))
    return merge_pages(pages).encode()


async def _scrape(client: httpx.AsyncClient, host: str, port: int) -> str:
    try:
        answer = await client.get(f"http://{host}:{port}/metrics")
    except httpx.HTTPError:
        # A node that is going away takes its metrics with it.
        return ""
    return answer.text if answer.status_code == httpx.codes.OK else ""


def merge_pages(pages: Iterable[str]) -> str:
    """Pages of several nodes as one: each family once, with the samples of all nodes."""
    heads: dict[str, list[str]] = {}
    samples: dict[str, list[str]] = {}
    for page in pages:
        family = ""
        for line in page.splitlines():
            if line.startswith(("# HELP ", "# TYPE ")):
                parts = line.split(" ", 3)
                family = parts[2]
                if family.startswith(_WANTED):
                    head = heads.setdefault(family, [])
                    if line not in head and not any(
                        known.startswith(" ".join(parts[:3])) for known in head
                    ):
                        head.append(line)
            elif line.startswith(_WANTED) and family.startswith(_WANTED):
                samples.setdefault(family, []).append(line)
    lines = [
        line for family in sorted(samples) for line in (*heads.get(family, ()), *samples[family])
    ]
    return "\n".join(lines) + "\n"
