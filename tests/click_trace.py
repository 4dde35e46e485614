"""Which files of the service a warm click passes: ``python -m tests.click_trace``.

A click on a known image goes through the HTTP interface and the flow, in this process, to a
fake of the variant: everything that happens in an ingress replica.  Counted are the entries
into functions of `serve_app` (also those that are resumed), and how often the file changes from
one entry to the next.  What the fake calls does not count.
"""

from __future__ import annotations

import asyncio
import io
import itertools
import sys
from pathlib import Path
from types import FrameType
from typing import Any

import httpx
import numpy as np
from PIL import Image

from serve_app.core.limits import Limits
from serve_app.http.app import create_app

from .fakes.flow import FakeGraph

ROOT = Path(__file__).resolve().parents[1] / "serve_app"
FAKES = f"{Path(__file__).parent}/fakes/"


async def trace_click() -> list[str]:
    """The files that are entered, in order, relative to `serve_app`."""

    async def metrics() -> bytes:
        return b""

    limits = Limits()
    app = create_app(FakeGraph(limits=limits).flow, limits, metrics=metrics, version="0")
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://trace") as client:
        png = io.BytesIO()
        Image.fromarray(np.zeros((40, 60, 3), np.uint8)).save(png, "PNG")
        files = {"file": ("photo.png", png.getvalue())}
        known = (await client.post("/v1/embed", files=files)).json()["image_id"]
        click = {"image_id": known, "point_coords": [[5, 5]], "point_labels": [1]}
        entered: list[str] = []
        prefix = f"{ROOT}/"

        def entry(frame: FrameType, event: str, _: Any) -> None:
            path = frame.f_code.co_filename
            if event == "call" and path.startswith(prefix) and not _below_fake(frame):
                entered.append(path.removeprefix(prefix))

        for warm in (False, True):
            sys.setprofile(entry if warm else None)
            try:
                response = await client.post("/v1/segment", json=click)
            finally:
                sys.setprofile(None)
            response.raise_for_status()
    return entered


def _below_fake(frame: FrameType | None) -> bool:
    while frame is not None and not frame.f_code.co_filename.startswith(FAKES):
        frame = frame.f_back
    return frame is not None


def changes(entered: list[str]) -> int:
    """How often the file changes."""
    return sum(a != b for a, b in itertools.pairwise(entered))


def main() -> None:
    entered = asyncio.run(trace_click())
    files = list(dict.fromkeys(entered))
    print(f"{len(files)} files, {changes(entered)} changes of file, {len(entered)} entries")
    for path in files:
        print(f"  {entered.count(path):4d}  {path}")


if __name__ == "__main__":
    main()
