"""``configs/gpu.yaml`` on a real GPU, and its figures.

    python -m tests.cluster.gpu
    python -m tests.cluster.gpu --dry-run     # the same on CPUs, with MobileSAM in both places

MobileSAM is the real one.  ViT-H has random weights of its real shapes, which cost the same, and
CLIP is the small one of the tests: neither can be had from a package registry.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import yaml
from segment_anything import sam_model_registry

from tests.tiny_clip import tiny_clip_settings

from ..chaos.client import Client, quantile
from ..chaos.questions import Ask, form, new_number
from ..chaos.service import Service, serving_config
from ..golden.cases import photo
from .conftest import CONFIGS
from .test_http import new_photo, png

BOX = {"box": [80, 30, 400, 290], "multimask_output": False}
SECONDS = 4.0


@contextmanager
def gpu_service(dry: bool = False) -> Iterator[Service]:
    """The configuration as it is but for where weights come from, its port and its ledger.

    Args:
        dry: a pretend GPU: that all of it works but for what a GPU is needed for.
    """
    with tempfile.TemporaryDirectory() as folder:
        config = yaml.safe_load((CONFIGS / "gpu.yaml").read_text("utf-8"))
        arguments = config["applications"][0]["args"]
        if dry:
            _without_gpu(arguments)
        else:
            arguments["registry"] = str(_registry(Path(folder)))
        arguments["measurements"] = {"path": f"{folder}/ledger.json"}
        arguments["text"]["open_clip"] = tiny_clip_settings().model_dump(mode="json")
        with serving_config(config, "sam", num_gpus=1, num_cpus=8) as service:
            yield service


def _without_gpu(arguments: dict[str, Any]) -> None:
    halves = [v[half] for v in arguments["variants"].values() for half in ("encoder", "decoder")]
    for part in (*halves, arguments["text"]):
        part["compute"] = {"device": "cpu", "threads": 1}
    arguments["variants"]["accurate"]["model"] = "vit_t"


def _registry(folder: Path) -> Path:
    """The shipped one, with a checkpoint of our own for ViT-H."""
    torch.manual_seed(20)
    checkpoint = folder / "random_vit_h.pth"
    torch.save(sam_model_registry["vit_h"]().state_dict(), checkpoint)
    with checkpoint.open("rb") as content:
        digest = hashlib.file_digest(content, "sha256").hexdigest()
    registry = yaml.safe_load((CONFIGS / "models.yaml").read_text("utf-8"))
    registry["models"]["vit_h"]["files"]["checkpoint"] = {
        "name": checkpoint.name,
        "size": checkpoint.stat().st_size,
        "sha256": digest,
        "sources": [{"local": str(checkpoint)}],
    }
    path = folder / "models.yaml"
    path.write_text(yaml.safe_dump(registry), encoding="utf-8")
    return path


def known(variant: str) -> Callable[[], Ask]:
    """A box on a photo that the service knows, sent along each time."""
    image = png(photo("chelsea"))
    return lambda: form("known", variant, image, {"prompts": [BOX], "variant": variant})


def unknown(variant: str) -> Callable[[], Ask]:
    """The same on a photo that nobody has seen."""
    return lambda: form(
        "new", f"new-{new_number()}", png(new_photo()), {"prompts": [BOX], "variant": variant}
    )


async def figures(service: Service) -> list[str]:
    """Rows of a table: what is asked, callers, answers a second, median and 99th percentile."""
    rows = []
    for variant in ("fast", "accurate"):
        for what, make in (("known", known(variant)), ("new", unknown(variant))):
            for callers in (1, 16, 48):
                async with Client(service.url) as client:
                    await client.closed_loop(make, callers, 1.0)
                    before = len(client.ledger.all())
                    rate = await client.closed_loop(make, callers, SECONDS)
                    asked = client.ledger.all()[before:]
                    took = [o.took_ms for o in asked if o.status == 200]
                    failed = sum(o.status != 200 for o in asked)
                rows.append(
                    f"| {variant}, a {what} photo | {callers} | {rate:.0f} "
                    f"| {quantile(took, 0.5):.0f} | {quantile(took, 0.99):.0f} | {failed} |"
                )
    return rows


def memory() -> str:
    """Of each process on the GPU, as the driver tells."""
    query = ["nvidia-smi", "--query-compute-apps=pid,used_memory", "--format=csv,noheader"]
    return subprocess.run(query, check=False, capture_output=True, text=True).stdout


def main() -> None:
    """Serve, ask, and print."""
    parser = argparse.ArgumentParser(description="configs/gpu.yaml at work")
    parser.add_argument("--dry-run", action="store_true", help="on CPUs")
    dry = parser.parse_args().dry_run
    print("no GPU" if dry else torch.cuda.get_device_name(0))
    with gpu_service(dry) as service:
        print("| one box on | callers | answers/s | p50 ms | p99 ms | failed |")
        print("|--|--:|--:|--:|--:|--:|")
        for row in asyncio.run(figures(service)):
            print(row, flush=True)
        print(json.dumps({role: sorted(pids) for role, pids in service.roles().items()}))
        if not dry:
            print(memory())


if __name__ == "__main__":
    main()
