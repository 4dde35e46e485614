"""The baseline that a team would write first: FastAPI around one `SamPredictor`.

A queue of 100, batches of up to 8 within 100 ms; the images of a batch are processed one by one,
and the last image's embedding is kept.  It is optimised within that design: an image that is still
in the predictor is not decoded again, passes run outside of the event loop, and OpenCV writes PNGs.

    uvicorn --factory serve_tools.bench.plain_service:create_app
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import io
import os
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Annotated, Any

import cv2
import numpy as np
import orjson
import torch
from fastapi import FastAPI, Form, HTTPException, Response, UploadFile
from numpy.typing import NDArray
from PIL import Image, ImageOps
from segment_anything import SamPredictor

from serve_app.engines.sam.model import load_sam
from serve_app.models.factory import ModelSource

MODEL, THREADS = "SAM_BENCH_MODEL", "SAM_BENCH_THREADS"
"""Environment: a registry name, and torch's threads."""

_QUEUE = 100
_BATCH = 8
_BATCH_S = 0.1


@dataclass(slots=True, eq=False)
class _Item:
    image: bytes
    points: NDArray[np.float32]
    labels: NDArray[np.int32]
    result: asyncio.Future[dict[str, Any]]
    queued: float


class _Segmenter:
    """The model and the last image that it saw."""

    def __init__(self, predictor: SamPredictor) -> None:
        self._predictor = predictor
        self._last: bytes | None = None

    def segment(self, item: _Item) -> dict[str, Any]:
        begin = time.perf_counter()
        key = hashlib.sha256(item.image).digest()
        if key != self._last:
            self._last = None
            with Image.open(io.BytesIO(item.image)) as image:
                pixels = np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
            self._predictor.set_image(pixels)
            self._last = key
        encoded = time.perf_counter()
        masks, scores, _ = self._predictor.predict(item.points, item.labels, multimask_output=True)
        decoded = time.perf_counter()
        body = {"masks": [_png(mask) for mask in masks], "scores": scores.tolist()}
        done = time.perf_counter()
        stages = {
            "queue": begin - item.queued,
            "encode": encoded - begin,
            "decode": decoded - encoded,
            "png": done - decoded,
        }
        return {**body, "timings_ms": {name: 1e3 * s for name, s in stages.items()}}


def _png(mask: NDArray[np.bool_]) -> str:
    _, encoded = cv2.imencode(".png", mask.astype(np.uint8) * 255)
    return base64.b64encode(encoded.tobytes()).decode()


async def _work(queue: asyncio.Queue[_Item], segmenter: _Segmenter) -> None:
    while True:
        batch = [await queue.get()]
        with suppress(TimeoutError):
            async with asyncio.timeout(_BATCH_S):
                while len(batch) < _BATCH:
                    batch.append(await queue.get())
        for item in batch:
            try:
                body = await asyncio.to_thread(segmenter.segment, item)
            except Exception as exc:
                body = {"error": type(exc).__name__}
            if not item.result.done():
                item.result.set_result(body)


def create_app() -> FastAPI:
    """The service, with the weights of a registered SAM."""
    queue: asyncio.Queue[_Item] = asyncio.Queue(_QUEUE)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        worker = asyncio.create_task(_work(queue, _Segmenter(_load())))
        yield
        worker.cancel()

    app = FastAPI(lifespan=lifespan)

    @app.get("/health")
    async def health() -> dict[str, str]:
        return {"status": "ok"}

    @app.post("/segment")
    async def segment(
        file: UploadFile,
        point_coords: Annotated[str, Form()],
        point_labels: Annotated[str, Form()],
    ) -> Response:
        try:
            points = np.array(orjson.loads(point_coords), np.float32).reshape(-1, 2)
            labels = np.array(orjson.loads(point_labels), np.int32).reshape(len(points))
        except ValueError as exc:
            raise HTTPException(400, "point_coords or point_labels cannot be read") from exc
        loop = asyncio.get_running_loop()
        item = _Item(await file.read(), points, labels, loop.create_future(), time.perf_counter())
        try:
            queue.put_nowait(item)
        except asyncio.QueueFull as exc:
            raise HTTPException(503, "the queue is full") from exc
        body = await item.result
        if "error" in body:
            raise HTTPException(400, "the image or the prompt cannot be used")
        return Response(orjson.dumps(body), media_type="application/json")

    return app


def _load() -> SamPredictor:
    model, source = os.environ.get(MODEL, "vit_t"), ModelSource()
    torch.set_num_threads(int(os.environ.get(THREADS, "1")))
    architecture = source.spec(model).architecture
    if architecture is None:
        raise ValueError(f"{model} is no SAM")
    return SamPredictor(load_sam(architecture, source.weights(model).paths["checkpoint"]))
