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
from typing import Any, BinaryIO

import httpx
from fastapi import FastAPI

from serve_app.connectors.article import article_router
from serve_app.core.limits import Limits
from serve_app.http.app import create_app

from ..fakes.flow import FakeGraph
from ..fakes.ports import FakeProposer

KEPT_BYTES = 16 * 2**20
_HEAD = struct.Struct(">II")


def send(pipe: BinaryIO, path: str, content_type: str, body: bytes) -> None:
    """Write one request."""
    head = json.dumps({"path": path, "content_type": content_type}).encode()
    pipe.write(_HEAD.pack(len(head), len(body)) + head + body)
    pipe.flush()


def application() -> FastAPI:
    """The application as an ingress replica has it, over fakes without any memory of images."""
    limits = Limits()
    graph = FakeGraph(
        limits=limits,
        proposer=FakeProposer(boxes=(), points=()),
        remembers=False,
        image_bytes=KEPT_BYTES,
    )

    async def metrics() -> bytes:
        return b""

    return create_app(graph.flow, limits, metrics=metrics, version="0", connectors=[article_router])


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
