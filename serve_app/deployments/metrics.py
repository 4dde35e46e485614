"""The metrics of all processes of the cluster as one page for Prometheus.

Ray's metrics agent on each node collects the metrics of this service (``ray_sam_``) and of Serve
(``ray_serve_``).  Names are the same as when Prometheus scrapes the agents itself.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

import httpx

from serve_app.deployments.compat.runtime import metrics_endpoints

_TIMEOUT_S = 2.0
_PREFIXES = ("ray_sam_", "ray_serve_")


async def cluster_metrics() -> bytes:
    """The metrics of every node that responds, in Prometheus' text format."""
    addresses = await asyncio.to_thread(metrics_endpoints)
    async with httpx.AsyncClient(timeout=_TIMEOUT_S, trust_env=False) as client:
        pages = await asyncio.gather(*(_scrape(client, *address) for address in addresses))
    return merge_pages(pages).encode()


async def _scrape(client: httpx.AsyncClient, host: str, port: int) -> str:
    try:
        response = await client.get(f"http://{host}:{port}/metrics")
    except httpx.HTTPError:
        # The node may be shutting down.
        return ""
    return response.text if response.status_code == httpx.codes.OK else ""


def merge_pages(pages: Iterable[str]) -> str:
    """Merge pages of several nodes: each metric family once, with the samples of all nodes."""
    heads: dict[str, dict[str, str]] = {}
    samples: dict[str, list[str]] = {}
    for page in pages:
        family = ""
        for line in page.splitlines():
            if line.startswith(("# HELP ", "# TYPE ")):
                kind, family = line.split(" ", 3)[1:3]
                if family.startswith(_PREFIXES):
                    heads.setdefault(family, {}).setdefault(kind, line)
            elif line.startswith(_PREFIXES) and family.startswith(_PREFIXES):
                samples.setdefault(family, []).append(line)
    lines: list[str] = []
    for family in sorted(samples):
        lines += [*heads.get(family, {}).values(), *samples[family]]
    return "\n".join(lines) + "\n"
