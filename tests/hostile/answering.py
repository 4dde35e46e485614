"""The HTTP interface with the real flow, in a process of its own, asked over pipes.

`python -m tests.hostile.answering`: standard input brings requests (`Asked`), standard output a
line of JSON for each, with the answer and what it cost this process.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import struct
import sys
import time
from collections.abc import Sequence
from typing import Any, BinaryIO

import httpx
import numpy as np
from fastapi import FastAPI

from serve_app.connectors.article import article_router
from serve_app.core.inference import DecodeOptions, Prediction, Proposal, VariantInfo
from serve_app.core.limits import Limits
from serve_app.core.measurements import Measurements
from serve_app.core.rle import encode_rle
from serve_app.core.settings import RouterSettings
from serve_app.core.types import CacheTier, Mask, Prompt, ProposalSource, RgbArray
from serve_app.flow.flow import SegmentationFlow
from serve_app.http.app import create_app
from serve_app.images.store import ImageStore
from serve_app.routing.dispatcher import Dispatcher
from serve_app.routing.load_tracker import Capacity

KEPT_BYTES = 16 * 2**20
_HEAD = struct.Struct(">II")


def send(pipe: BinaryIO, path: str, content_type: str, body: bytes) -> None:
    """Write one request."""
    head = json.dumps({"path": path, "content_type": content_type}).encode()
    pipe.write(_HEAD.pack(len(head), len(body)) + head + body)
    pipe.flush()


class StandIn:
    """A predictor that looks at the pixels and finds one pixel in each image."""

    async def predict(
        self,
        image_id: str,
        pixels: RgbArray | None,
        prompts: Sequence[Prompt],
        options: DecodeOptions,
    ) -> Prediction | None:
        if pixels is None:
            return None
        height, width = pixels.shape[:2]
        pixels.max()
        found = np.zeros((height, width), np.bool_)
        found[0, 0] = True
        mask = Mask(
            rle=encode_rle(found),
            score=0.5,
            stability_score=1.0,
            bbox=(0, 0, 1, 1),
            area=1,
        )
        return Prediction(masks=((mask,),) * len(prompts), cache=CacheTier.MISS, timings_ms={})

    async def scale_from_zero(self) -> None:
        """Is always awake."""

    async def propose(
        self,
        pixels: RgbArray | None,
        size: tuple[int, int],
        source: ProposalSource,
        points_per_side: int,
    ) -> tuple[Proposal, ...]:
        return ()


def application() -> FastAPI:
    """The application as an ingress replica has it, with the stand-in for models."""
    standin, limits = StandIn(), Limits()
    info = VariantInfo(name="fast", model="m", family="sam", description="")
    flow = SegmentationFlow(
        images=ImageStore(limits, KEPT_BYTES),
        variants={"fast": info},
        predictors={"fast": standin},
        proposer=standin,
        scorer=None,
        dispatcher=Dispatcher(
            RouterSettings(),
            {"fast": Capacity()},
            Measurements(),
            {"fast": standin.scale_from_zero},
        ),
        limits=limits,
    )

    async def metrics() -> bytes:
        return b""

    return create_app(flow, limits, metrics=metrics, version="0", connectors=[article_router])


def peak_bytes() -> int:
    """The most memory that this process has held so far."""
    with open("/proc/self/status", encoding="ascii") as status:
        (line,) = (line for line in status if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024


async def answer(leak: bool) -> None:
    """Until standard input ends."""
    app = application()
    leaked: list[bytearray] = []
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://sam") as client:
        while head := sys.stdin.buffer.read(_HEAD.size):
            head_bytes, body_bytes = _HEAD.unpack(head)
            asked: dict[str, Any] = json.loads(sys.stdin.buffer.read(head_bytes))
            body = sys.stdin.buffer.read(body_bytes)
            if leak:
                leaked.append(bytearray(b"x") * 4_000_000)
            # Processor time of all threads, so that a busy machine does not fail the test.
            begun = time.process_time()
            answered = await client.post(
                asked["path"], content=body, headers={"content-type": asked["content_type"]}
            )
            line = {
                "status": answered.status_code,
                "text": answered.text[:10_000],
                "seconds": time.process_time() - begun,
                "peak_bytes": peak_bytes(),
            }
            print(json.dumps(line), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--leak", action="store_true", help="4 MB a request, to prove the test")
    asyncio.run(answer(parser.parse_args().leak))


if __name__ == "__main__":
    main()
