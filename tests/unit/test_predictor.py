"""One variant's cache, encoder and decoder together, over fakes."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence

import numpy as np
import pytest

from serve_app.core.deadline import deadline, until
from serve_app.core.errors import DeadlineExceeded
from serve_app.core.inference import DecodeJob, DecodeOptions, Embedding
from serve_app.core.rle import encode_rle
from serve_app.core.types import CacheTier, Mask, Prompt, RgbArray
from serve_app.embeddings.predictor import VariantPredictor
from serve_app.embeddings.tiers import TieredEmbeddingCache

PIXELS = np.zeros((4, 6, 3), np.uint8)
PROMPTS = [Prompt(point_coords=[[i, 1]], point_labels=[1]) for i in range(3)]


class Model:
    """Encodes to the mean, decodes to a mask whose score is the prompt's x."""

    def __init__(self, cache: TieredEmbeddingCache | None = None, weights: str = "w") -> None:
        self.encoded: list[RgbArray] = []
        self.jobs: list[DecodeJob] = []
        self.predictor: VariantPredictor[RgbArray] = VariantPredictor(
            cache or TieredEmbeddingCache(10_000),
            self.encode,
            self.decode,
            weights_hash=weights,
            preprocessing="p",
            dtype="float32",
        )

    async def encode(self, pixels: RgbArray) -> Embedding:
        self.encoded.append(pixels)
        await asyncio.sleep(0)
        return Embedding({"e": np.array([pixels.mean()])}, height=4, width=6)

    async def decode(self, jobs: Sequence[DecodeJob]) -> list[tuple[Mask, ...]]:
        self.jobs += jobs
        masks = []
        for job in jobs:
            assert job.prompt.point_coords is not None
            mask = Mask(
                rle=encode_rle(np.ones((4, 6), np.bool_)),
                score=float(job.prompt.point_coords[0, 0]),
                stability_score=1.0,
                bbox=(0, 0, 6, 4),
                area=24,
            )
            masks.append((mask,))
        return masks


async def test_prompts_are_answered_in_order_with_their_options() -> None:
    model, options = Model(), DecodeOptions(return_logits=True)
    prediction = await model.predictor.predict("a", PIXELS, PROMPTS, options)
    assert prediction is not None
    assert [masks[0].score for masks in prediction.masks] == [0, 1, 2]
    assert prediction.cache is CacheTier.MISS
    assert set(prediction.timings_ms) == {"embed", "decode_masks"}
    assert all(job.options is options for job in model.jobs)
    # Of one image they carry one embedding, by which the decoder groups them.
    assert len({id(job.embedding) for job in model.jobs}) == 1


async def test_prompts_go_to_the_decoder_so_many_at_once() -> None:
    model, sizes = Model(), []
    decode = model.predictor._decode

    async def counted(jobs: Sequence[DecodeJob]) -> list[tuple[Mask, ...]]:
        sizes.append(len(jobs))
        return await decode(jobs)

    model.predictor._decode = counted
    options = DecodeOptions(prompts_at_once=2)
    prediction = await model.predictor.predict("a", PIXELS, PROMPTS, options)
    assert prediction is not None
    assert [masks[0].score for masks in prediction.masks] == [0, 1, 2]
    assert sizes == [2, 1]


async def test_only_points_that_see_different_things_are_decoded() -> None:
    class Halves(Model):
        async def encode(self, pixels: RgbArray) -> Embedding:
            features = np.zeros((2, 4, 4), np.float32)
            features[0, :, :2], features[1, :, 2:] = 1, 1
            return Embedding({"image_embed": features}, height=4, width=6)

    model = Halves()
    prompts = [Prompt(point_coords=[[x, 1]], point_labels=[1]) for x in (0, 1, 5, 6)]
    options = DecodeOptions(most_points=3)
    prediction = await model.predictor.predict("a", PIXELS, prompts, options)
    assert prediction is not None
    # The whole square is 6 x 6, of which the left half is the image's x < 3.
    assert [len(masks) for masks in prediction.masks] == [1, 0, 1, 0]
    assert [masks[0].score for masks in prediction.masks if masks] == [0, 5]


async def test_of_all_masks_of_a_call_duplicates_are_dropped() -> None:
    prediction = await Model().predictor.predict(
        "a", PIXELS, PROMPTS, DecodeOptions(prompts_at_once=1, box_nms_thresh=0.7)
    )
    assert prediction is not None
    # All masks are the same square: the last prompt's has the best score.
    assert [len(masks) for masks in prediction.masks] == [0, 0, 1]
    assert prediction.masks[2][0].score == 2


async def test_without_pixels_an_unknown_image_is_none_and_nothing_runs() -> None:
    model = Model()
    assert await model.predictor.predict("a", None, PROMPTS, DecodeOptions()) is None
    assert (model.encoded, model.jobs) == ([], [])


async def test_a_known_image_needs_no_pixels() -> None:
    model = Model()
    embedded = await model.predictor.predict("a", PIXELS, (), DecodeOptions())
    assert embedded is not None
    assert (embedded.masks, embedded.cache, model.jobs) == ((), CacheTier.MISS, [])
    known = await model.predictor.predict("a", None, PROMPTS, DecodeOptions())
    assert known is not None
    assert (known.cache, len(known.masks), len(model.encoded)) == (CacheTier.MEMORY, 3, 1)


async def test_twenty_requests_for_one_image_encode_once() -> None:
    model = Model()
    predict = model.predictor.predict
    answers = await asyncio.gather(
        *(predict("a", PIXELS, PROMPTS[:1], DecodeOptions()) for _ in range(20))
    )
    assert len(model.encoded) == 1
    assert all(answer is not None and len(answer.masks) == 1 for answer in answers)


async def test_another_model_never_reads_these_embeddings() -> None:
    cache = TieredEmbeddingCache(10_000)
    old, new = Model(cache, "old"), Model(cache, "new")
    await old.predictor.predict("a", PIXELS, (), DecodeOptions())
    assert await new.predictor.predict("a", None, (), DecodeOptions()) is None


async def test_an_encoders_failure_is_the_callers() -> None:
    model = Model()

    async def fails(pixels: RgbArray) -> Embedding:
        raise ValueError("no memory")

    predictor = VariantPredictor(
        TieredEmbeddingCache(10_000),
        fails,
        model.decode,
        weights_hash="w",
        preprocessing="p",
        dtype="float32",
    )
    with pytest.raises(ValueError, match="no memory"):
        await predictor.predict("a", PIXELS, PROMPTS, DecodeOptions())


async def test_the_encoder_is_told_how_long_its_caller_waits() -> None:
    model = Model()
    ends: list[float] = []

    async def encode(pixels: RgbArray) -> Embedding:
        ends.append(until())
        return await model.encode(pixels)

    predictor = VariantPredictor(
        TieredEmbeddingCache(10_000),
        encode,
        model.decode,
        weights_hash="w",
        preprocessing="p",
        dtype="float32",
    )
    await predictor.predict("a", PIXELS, PROMPTS, DecodeOptions())
    with deadline(1e9):
        await predictor.predict("b", PIXELS, PROMPTS, DecodeOptions())
    assert ends == [math.inf, 1e9]


async def test_whoever_shares_anothers_encoding_does_not_share_its_deadline() -> None:
    model = Model()
    begun, over = asyncio.Event(), asyncio.Event()

    async def encode(pixels: RgbArray) -> Embedding:
        if until() == math.inf:
            return await model.encode(pixels)
        begun.set()
        await over.wait()
        raise DeadlineExceeded("too late")

    predictor = VariantPredictor(
        TieredEmbeddingCache(10_000),
        encode,
        model.decode,
        weights_hash="w",
        preprocessing="p",
        dtype="float32",
    )
    with deadline(1e9):
        hasty = asyncio.create_task(predictor.predict("a", PIXELS, PROMPTS, DecodeOptions()))
    await begun.wait()
    patient = asyncio.create_task(predictor.predict("a", PIXELS, PROMPTS, DecodeOptions()))
    await asyncio.sleep(0)
    assert model.encoded == []  # it waits for the same encoding
    over.set()
    with pytest.raises(DeadlineExceeded):
        await hasty
    found = await asyncio.wait_for(patient, 60)
    assert found is not None
    assert (len(found.masks), len(model.encoded)) == (3, 1)
