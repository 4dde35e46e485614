"""The HTTP interface in process, over a service that answers by rule and remembers requests."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from typing import Any

import httpx
import numpy as np
import pytest
from fastapi import FastAPI

from serve_app.capabilities import Everything, SegmentRequest, TextQuery
from serve_app.connectors.article import article_router
from serve_app.core.limits import Limits
from serve_app.core.rle import encode_rle
from serve_app.core.types import (
    BoolArray,
    CacheTier,
    EmbedResult,
    Mask,
    PromptResult,
    RgbArray,
    SegmentResult,
)
from serve_app.http.app import create_app
from serve_app.telemetry.metrics import set_collector

from .asgi import Figures

HEIGHT, WIDTH = 24, 32
IMAGE_ID = "32x24-abc"


def ring_and_dot() -> BoolArray:
    """A square with a hole, and a detached pixel block."""
    mask = np.zeros((HEIGHT, WIDTH), np.bool_)
    mask[2:12, 3:13] = True
    mask[5:8, 6:9] = False
    mask[15:18, 20:24] = True
    return mask


def make_mask(array: BoolArray, score: float = 0.9, **more: Any) -> Mask:
    ys, xs = np.nonzero(array)
    box = (0, 0, 0, 0)
    if len(xs):
        box = (xs.min(), ys.min(), xs.max() - xs.min() + 1, ys.max() - ys.min() + 1)
    return Mask(
        rle=encode_rle(array),
        score=score,
        stability_score=0.96,
        bbox=tuple(int(v) for v in box),
        area=int(array.sum()),
        **more,
    )


class FakeService:
    """Answers every request with the same masks; `failure` and `hook` change that.

    Attributes:
        requests: what arrived, in order.
        failure: raised instead of an answer.
        hook: awaited with each segment request before it is answered.
        more: further members of each answer.
        answered_by: the variant of a prompt's masks, where it is not the answer's.
    """

    def __init__(self) -> None:
        self.requests: list[SegmentRequest] = []
        self.embedded: list[tuple[bytes | RgbArray | str, str]] = []
        self.failure: BaseException | None = None
        self.hook: Callable[[SegmentRequest], Any] | None = None
        self.is_ready = True
        self.score = 0.9
        self.array = ring_and_dot()
        self.more: dict[str, Any] = {}
        self.answered_by: str | None = None

    def _masks(self, count: int, request: SegmentRequest, **more: Any) -> tuple[Mask, ...]:
        if request.return_logits:
            more["low_res_logits"] = np.full((256, 256), 1.5, np.float16)
        return tuple(make_mask(self.array, self.score, **more) for _ in range(count))

    async def segment(self, request: SegmentRequest) -> SegmentResult:
        self.requests.append(request)
        if self.hook is not None:
            await self.hook(request)
        if self.failure is not None:
            raise self.failure
        extra: dict[str, Any] = {}
        task = request.task
        if isinstance(task, TextQuery):
            extra = {"text_engine": "labels", "threshold": 0.5}
            results = tuple(
                PromptResult(masks=(), text=t, present=False, best_score=0.25)
                if t == "absent"
                else PromptResult(
                    masks=self._masks(1, request, text_score=0.8, label="dog"),
                    text=t,
                    present=True,
                    best_score=0.8,
                )
                for t in task.text
            )
        elif isinstance(task, Everything):
            more = {
                "predicted_iou": self.score,
                "point_coords": ((4.0, 5.0),),
                "crop_box": (0, 0, WIDTH, HEIGHT),
            }
            results = (PromptResult(masks=self._masks(2, request, **more)),)
        else:
            results = tuple(
                PromptResult(
                    masks=self._masks(3 if p.multimask_output else 1, request),
                    variant=self.answered_by,
                )
                for p in task.prompts
            )
        return SegmentResult(
            image_id=IMAGE_ID,
            width=WIDTH,
            height=HEIGHT,
            results=results,
            variant="fast" if request.variant == "auto" else request.variant,
            model="vit_t",
            reason="the default",
            cache=CacheTier.MISS,
            timings_ms={"embed": 12.5},
            **extra,
            **self.more,
        )

    async def embed(self, image: bytes | RgbArray | str, variant: str) -> EmbedResult:
        self.embedded.append((image, variant))
        if self.failure is not None:
            raise self.failure
        return EmbedResult(
            image_id=IMAGE_ID,
            width=WIDTH,
            height=HEIGHT,
            variant="fast" if variant == "auto" else variant,
            model="vit_t",
            cache=CacheTier.MEMORY,
            timings_ms={"embed": 3.0},
        )

    async def models(self) -> Mapping[str, Any]:
        return {"variants": {"fast": {"model": "vit_t", "sources": ("local",)}}}

    async def ready(self) -> bool:
        return self.is_ready


@pytest.fixture
def service() -> FakeService:
    return FakeService()


@pytest.fixture
def limits() -> Limits:
    return Limits(
        linger_seconds=0,  # these tests look at what the service itself reads
        max_body_bytes=4 * 2**20,
        max_prompts=8,
        max_points=4,
        max_texts=3,
        max_batch_images=4,
    )


@pytest.fixture
def figures() -> Iterator[Figures]:
    """What this process counts meanwhile."""
    kept = Figures()
    before = set_collector(kept)
    yield kept
    set_collector(before)


@pytest.fixture
def app(service: FakeService, limits: Limits) -> FastAPI:
    async def metrics() -> bytes:
        return b"# TYPE sam_requests counter\nsam_requests 7\n"

    return create_app(
        service, limits, metrics=metrics, version="9.8.7", connectors=[article_router]
    )


@pytest.fixture
async def client(app: FastAPI) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://sam") as client:
        yield client
