"""One variant at work: embedding cache, encoder, decoder.  Runs in the decoder's replica.

Knows neither Ray nor torch: the encoder and decoder are handed in, as calls over a handle (split
layout), engines of the same process (fused layout, evaluation), or fakes (tests).
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, TypeVar

from serve_app.cache.keys import embedding_key
from serve_app.domain.types import (
    DecodeJob,
    DecodeOptions,
    Embedding,
    Mask,
    Prediction,
    Prompt,
)
from serve_app.ports import EmbeddingCache

P = TypeVar("P")


class VariantPredictor(Generic[P]):
    """Answers prompts on images; ``P`` is how pixels are passed on: an array or a reference.

    Attributes:
        encoding: images handed to the encoder whose embeddings are not there yet.
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
    ) -> None:
        self.encoding = 0
        self._cache = cache
        self._encode = encode
        self._decode = decode
        self._weights_hash = weights_hash
        self._preprocessing = preprocessing
        self._dtype = dtype

    async def predict(
        self,
        image_id: str,
        pixels: P | None,
        prompts: Sequence[Prompt],
        options: DecodeOptions,
    ) -> Prediction | None:
        """See `serve_app.ports.Predictor.predict`."""
        started = time.perf_counter()
        key = embedding_key(image_id, self._weights_hash, self._preprocessing, self._dtype)
        compute = None
        if pixels is not None:
            given = pixels

            async def compute() -> Embedding:
                self.encoding += 1
                try:
                    return await self._encode(given)
                finally:
                    self.encoding -= 1

        found = await self._cache.get_or_compute(key, compute)
        if found is None:
            return None
        embedding, tier = found
        embedded = time.perf_counter()
        masks: tuple[tuple[Mask, ...], ...] = ()
        if prompts:
            jobs = [DecodeJob(embedding, prompt, options) for prompt in prompts]
            masks = tuple(await self._decode(jobs))
        timings = {
            "embed": (embedded - started) * 1e3,
            "decode_masks": (time.perf_counter() - embedded) * 1e3,
        }
        return Prediction(masks=masks, cache=tier, timings_ms=timings)
