"""Prediction by one variant: embedding cache, encoder, decoder.  Runs in the decoder's replica.

Independent of Ray and torch: encoder and decoder are arguments.  They are calls over a handle
(split layout), engines in the same process (fused layout, evaluation), or fakes (tests).
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, TypeVar

import numpy as np

from serve_app.core.deadline import deadline, until
from serve_app.core.errors import DeadlineExceeded
from serve_app.core.geometry import ResizeMode, mask_nms
from serve_app.core.inference import DecodeJob, DecodeOptions, Embedding, Prediction
from serve_app.core.ports import EmbeddingCache
from serve_app.core.types import CacheTier, Mask, Prompt
from serve_app.embeddings.diversity import farthest_point_sampling
from serve_app.telemetry.context import span

P = TypeVar("P")


class VariantPredictor(Generic[P]):
    """Predicts masks for prompts; ``P`` is the type of the pixels: an array or a reference.

    ``resize_mode``: how the model resizes images to its square input.

    Attributes:
        encoding: number of images that are being encoded.
    """

    def __init__(
        self,
        cache: EmbeddingCache,
        encode: Callable[[P], Awaitable[Embedding]],
        decode: Callable[[Sequence[DecodeJob]], Awaitable[list[tuple[Mask, ...]]]],
        *,
        weights_hash: str,
        preprocessing: str,
        dtype: str,
        resize_mode: ResizeMode = "pad",
    ) -> None:
        self.encoding = 0
        self._cache = cache
        self._encode = encode
        self._decode = decode
        self._weights_hash = weights_hash
        self._preprocessing = preprocessing
        self._dtype = dtype
        self._resize_mode = resize_mode

    async def predict(
        self,
        image_id: str,
        pixels: P | None,
        prompts: Sequence[Prompt],
        options: DecodeOptions,
    ) -> Prediction | None:
        """See `serve_app.core.ports.Predictor.predict`."""
        started = time.perf_counter()
        key = embedding_key(image_id, self._weights_hash, self._preprocessing, self._dtype)
        with span("embed"):
            if pixels is None:
                found = await self._cache.get_or_compute(key, None)
            else:
                found = await self._embedding(key, pixels)
        if found is None:
            return None
        embedding, tier = found
        embedded = time.perf_counter()
        with span("decode_masks"):
            masks = await self._masks(embedding, prompts, options) if prompts else ()
        timings = {
            "embed": (embedded - started) * 1e3,
            "decode_masks": (time.perf_counter() - embedded) * 1e3,
        }
        return Prediction(masks=masks, cache=tier, timings_ms=timings)

    async def _masks(
        self, embedding: Embedding, prompts: Sequence[Prompt], options: DecodeOptions
    ) -> tuple[tuple[Mask, ...], ...]:
        """Return the masks of each prompt; none for prompts that the options exclude."""
        chosen: Sequence[int] = range(len(prompts))
        if options.most_points is not None:
            points = np.array([p.point_coords[0] for p in prompts if p.point_coords is not None])
            chosen = await asyncio.to_thread(
                farthest_point_sampling, embedding, points, options.most_points, self._resize_mode
            )
        jobs = [DecodeJob(embedding, prompts[i], options) for i in chosen]
        found: list[tuple[Mask, ...]] = []
        step = options.prompts_at_once or len(prompts)
        for start in range(0, len(jobs), step):
            found += await self._decode(jobs[start : start + step])
        if options.box_nms_thresh is not None:
            found = await asyncio.to_thread(_without_duplicates, found, options.box_nms_thresh)
        by_prompt = dict(zip(chosen, found, strict=True))
        return tuple(by_prompt.get(i, ()) for i in range(len(prompts)))

    async def _embedding(self, key: str, pixels: P) -> tuple[Embedding, CacheTier] | None:
        """Return the embedding; a shared encoder call is limited by its first caller's deadline."""
        end = until()
        mine = False

        async def compute() -> Embedding:
            nonlocal mine
            mine = True
            self.encoding += 1
            try:
                with deadline(end):
                    return await self._encode(pixels)
            finally:
                self.encoding -= 1

        while True:
            try:
                return await self._cache.get_or_compute(key, compute)
            except DeadlineExceeded:
                if mine:
                    raise
                # The deadline was another caller's; this caller's may be later.


def _without_duplicates(
    found: Sequence[tuple[Mask, ...]], threshold: float
) -> list[tuple[Mask, ...]]:
    """Remove masks that duplicate better ones of any prompt."""
    masks = [mask for of_prompt in found for mask in of_prompt]
    kept = {id(masks[i]) for i in mask_nms(masks, threshold)}
    return [tuple(mask for mask in of_prompt if id(mask) in kept) for of_prompt in found]


def embedding_key(image_id: str, weights_hash: str, preprocessing: str, dtype: str) -> str:
    """Return the content-addressed cache key of one image's embedding by one model.

    Args:
        image_id: width, height and SHA-256 of the pixels (`serve_app.core.request`).
        weights_hash: SHA-256 over the model's weights.
        preprocessing: revision of the code between pixels and model.
        dtype: precision of the encoder's arithmetic.
    """
    digest = hashlib.sha256()
    for part in (image_id, weights_hash, preprocessing, dtype):
        data = part.encode()
        # With its length: different lists of parts have different hash inputs.
        digest.update(len(data).to_bytes(8, "big"))
        digest.update(data)
    return f"emb-{digest.hexdigest()}"
