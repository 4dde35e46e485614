"""A fake of the whole service behind its HTTP interface."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from serve_app.capabilities import Everything, SegmentRequest, TextQuery
from serve_app.core.request import AUTO, EmbedRequest, ImageOptions
from serve_app.core.types import (
    BoolArray,
    CacheTier,
    EmbedResult,
    Mask,
    PromptResult,
    RgbArray,
    SegmentResult,
    UnknownText,
)

from .masks import mask_of

HEIGHT, WIDTH = 24, 32
IMAGE_ID = "32x24-abc"


def ring_and_dot() -> BoolArray:
    """A square with a hole, and a detached pixel block."""
    mask = np.zeros((HEIGHT, WIDTH), np.bool_)
    mask[2:12, 3:13] = True
    mask[5:8, 6:9] = False
    mask[15:18, 20:24] = True
    return mask


class FakeService:
    """Responds to every request with the same masks; subclasses replace `respond`.

    Attributes:
        requests: segment requests, in order.
        embedded: images and variants of embed requests.
        embed_timeouts: their callers' timeouts.
        failure: raised instead of a response.
        hook: awaited with each segment request before its response.
        more: further members of each response.
        answered_by: the variant of a prompt's masks, where it is not the response's.
    """

    def __init__(self) -> None:
        self.requests: list[SegmentRequest] = []
        self.embed_options: ImageOptions | None = None
        self.embed_timeouts: list[float | None] = []
        self.embedded: list[tuple[bytes | RgbArray | str, str]] = []
        self.failure: BaseException | None = None
        self.hook: Callable[[SegmentRequest], Any] | None = None
        self.is_ready = True
        self.score = 0.9
        self.array = ring_and_dot()
        self.more: dict[str, Any] = {}
        self.answered_by: str | None = None

    async def segment(self, request: SegmentRequest) -> SegmentResult:
        self.requests.append(request)
        if self.hook is not None:
            await self.hook(request)
        if self.failure is not None:
            raise self.failure
        return self.respond(request)

    def respond(self, request: SegmentRequest) -> SegmentResult:
        text = isinstance(request.task, TextQuery)
        return SegmentResult(
            image_id=IMAGE_ID,
            width=WIDTH,
            height=HEIGHT,
            results=self._results(request),
            variant="fast" if request.variant == "auto" else request.variant,
            model="vit_t",
            reason="the default",
            cache=CacheTier.MISS,
            timings_ms={"embed": 12.5},
            text_engine="labels" if text else None,
            threshold=0.5 if text else None,
            **self.more,
        )

    def _results(self, request: SegmentRequest) -> tuple[PromptResult, ...]:
        task = request.task
        if isinstance(task, TextQuery):
            return tuple(self._text(text, request) for text in task.text)
        if isinstance(task, Everything):
            more = {
                "predicted_iou": self.score,
                "point_coords": ((4.0, 5.0),),
                "crop_box": (0, 0, WIDTH, HEIGHT),
            }
            return (PromptResult(masks=self._masks(2, request, **more)),)
        return tuple(
            PromptResult(
                masks=self._masks(3 if prompt.multimask_output else 1, request),
                variant=self.answered_by,
            )
            for prompt in task.prompts
        )

    def _text(self, text: str, request: SegmentRequest) -> PromptResult:
        if text == "no dog":
            why = UnknownText(reason="negation", message="negation is not understood")
            return PromptResult(masks=(), text=text, unknown=why)
        if text == "absent":
            return PromptResult(masks=(), text=text, present=False, best_score=0.25)
        masks = self._masks(1, request, text_score=0.8, label="dog")
        return PromptResult(masks=masks, text=text, present=True, best_score=0.8)

    def _masks(self, count: int, request: SegmentRequest, **more: Any) -> tuple[Mask, ...]:
        if request.return_logits:
            more["low_res_logits"] = np.full((256, 256), 1.5, np.float16)
        return tuple(mask_of(self.array, self.score, 0.96, **more) for _ in range(count))

    async def embed(
        self, image: EmbedRequest | bytes | RgbArray | str, variant: str = AUTO
    ) -> EmbedResult:
        request = EmbedRequest.of(image, variant)
        variant = request.variant
        self.embed_options = request
        self.embed_timeouts.append(request.timeout_s)
        self.embedded.append((request.image, variant))
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
