"""MobileSAM's real weights: our answers against `segment_anything`'s, prompt by prompt."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from segment_anything.modeling import Sam

from serve_app.capabilities import SegmentRequest
from serve_app.core.inference import DecodeJob, DecodeOptions, Embedding
from serve_app.core.ports import DecoderEngine
from serve_app.core.settings import GraphSettings
from serve_app.core.types import CacheTier, Mask, Prompt, SegmentResult
from serve_app.engines.sam.model import load_sam
from serve_app.flow.flow import SegmentationFlow
from serve_app.local import build_local_service
from serve_app.models.factory import ModelSource

from .cases import (
    ALL_CASES,
    PHOTOS,
    TWO_THREADS,
    Reference,
    cases_of,
    check_against,
    iou,
    photo,
    reference_answers,
)

pytestmark = pytest.mark.weights


@pytest.fixture(scope="module")
def sam(weight_paths: Callable[[str], dict[str, Path]]) -> Sam:
    return load_sam("vit_t", weight_paths("vit_t")["checkpoint"])


@pytest.fixture(scope="module")
def references(sam: Sam) -> dict[str, list[Reference]]:
    return {
        name: reference_answers(sam, photo(name), [c.prompt for c in cases_of(name)])
        for name in PHOTOS
    }


@pytest.fixture(scope="module")
def service(one_variant: Callable[..., GraphSettings]) -> SegmentationFlow:
    return build_local_service(one_variant("vit_t"))


@pytest.fixture(scope="module")
def decoder() -> DecoderEngine:
    return ModelSource().load_decoder("vit_t", TWO_THREADS)


@pytest.fixture(scope="module")
def embeddings() -> dict[str, Embedding]:
    encoder = ModelSource().load_encoder("vit_t", TWO_THREADS)
    found = encoder.encode_batch([photo(name) for name in PHOTOS])
    return dict(zip(PHOTOS, found, strict=True))


@pytest.mark.parametrize("name", PHOTOS)
async def test_thirty_prompts_through_the_flow_equal_sam_predictor(
    service: SegmentationFlow, references: dict[str, list[Reference]], name: str
) -> None:
    cases = cases_of(name)
    result = await service.segment(
        SegmentRequest(image=photo(name), task=[c.prompt for c in cases], return_logits=True)
    )
    assert len(cases) == 10
    for case, answer, reference in zip(cases, result.results, references[name], strict=True):
        assert len(answer.masks) == (3 if case.prompt.multimask_output else 1), case.name
        check_against(answer.masks, reference)
        for mask, logits in zip(answer.masks, reference.logits, strict=True):
            assert mask.low_res_logits is not None
            # Half precision: 16 between 16 and 32 is a step of 1/64.
            np.testing.assert_allclose(mask.low_res_logits, logits, rtol=2e-3, atol=2e-3)


async def test_the_prompts_give_real_masks(references: dict[str, list[Reference]]) -> None:
    """Agreement on nothing would prove nothing."""
    areas = [mask.mean() for of_photo in references.values() for r in of_photo for mask in r.masks]
    assert len(ALL_CASES) == 30
    assert np.mean([0.001 < area < 0.95 for area in areas]) > 0.9


async def test_logits_of_an_answer_are_a_mask_input(service: SegmentationFlow, sam: Sam) -> None:
    point = Prompt(point_coords=[[207, 126]], point_labels=[1])
    image = photo("chelsea")
    first = await service.segment(SegmentRequest(image=image, task=[point], return_logits=True))
    mask = first.results[0].masks[2]
    refined = Prompt(
        point_coords=[[207, 126], [390, 260]],
        point_labels=[1, 0],
        mask_input=mask.low_res_logits,
        multimask_output=False,
    )
    second = await service.segment(SegmentRequest(image=first.image_id, task=[refined]))
    assert second.cache is CacheTier.MEMORY
    check_against(second.results[0].masks, reference_answers(sam, image, [refined])[0])


def test_a_mixed_ragged_batch_equals_single_answers(
    decoder: DecoderEngine,
    embeddings: dict[str, Embedding],
    references: dict[str, list[Reference]],
) -> None:
    """All prompts of all images in one call, each in the company of others' prompts."""
    options = DecodeOptions(return_logits=True)
    jobs = [DecodeJob(embeddings[c.photo], c.prompt, options) for c in ALL_CASES]
    wanted = [reference for name in PHOTOS for reference in references[name]]
    single = [decoder.decode_batch([job])[0] for job in jobs]
    order = random.Random(1).sample(range(len(jobs)), len(jobs))
    mixed = decoder.decode_batch([jobs[i] for i in order])
    for i, masks in zip(order, mixed, strict=True):
        check_against(masks, wanted[i])
        _check_same(masks, single[i])


def test_a_batch_of_images_is_embedded_as_each_alone(embeddings: dict[str, Embedding]) -> None:
    encoder = ModelSource().load_encoder("vit_t", TWO_THREADS)
    alone = encoder.encode_batch([photo("coffee")])[0]
    batched = embeddings["coffee"]
    np.testing.assert_allclose(
        batched.tensors["image_embed"], alone.tensors["image_embed"], atol=1e-4
    )
    assert (batched.height, batched.width) == (600, 271)
    # Of its own: a view would keep the whole batch in memory.
    assert batched.tensors["image_embed"].base is None


async def test_images_of_one_pixel_and_of_one_line(service: SegmentationFlow, sam: Sam) -> None:
    dot = np.full((1, 1, 3), 90, np.uint8)
    prompt = Prompt(point_coords=[[0.5, 0.5]], point_labels=[1])
    result = await service.segment(SegmentRequest(image=dot, task=[prompt]))
    check_against(result.results[0].masks, reference_answers(sam, dot, [prompt])[0])
    for shape in ((1, 16_000, 3), (16_000, 1, 3)):
        line = np.zeros(shape, np.uint8)
        line.reshape(-1, 3)[4_000:9_000] = 255
        middle = [[8_000, 0.5]] if shape[0] == 1 else [[0.5, 8_000]]
        line_prompt = Prompt(point_coords=middle, point_labels=[1])
        answer: SegmentResult = await service.segment(
            SegmentRequest(image=line, task=[line_prompt])
        )
        masks: tuple[Mask, ...] = answer.results[0].masks
        assert [mask.array.shape for mask in masks] == [shape[:2]] * 3
        assert np.isfinite([mask.score for mask in masks]).all()


async def test_the_greatest_numbers_accepted_give_finite_scores(
    service: SegmentationFlow,
) -> None:
    extreme = [
        Prompt(box=[-1e9, -1e9, 1e9, 1e9]),
        Prompt(mask_input=np.full((256, 256), 1e9)),
        Prompt(mask_input=np.full((256, 256), -1e9), box=[10, 10, 50, 50]),
    ]
    usual = Prompt(point_coords=[[200, 100]], point_labels=[1])
    image = photo("chelsea")
    together = await service.segment(SegmentRequest(image=image, task=[usual, *extreme]))
    alone = await service.segment(SegmentRequest(image=image, task=[usual]))
    for answer in together.results:
        assert np.isfinite([mask.score for mask in answer.masks]).all()
    _check_same(together.results[0].masks, alone.results[0].masks)


def _check_same(masks: tuple[Mask, ...], others: tuple[Mask, ...]) -> None:
    assert len(masks) == len(others)
    for mask, other in zip(masks, others, strict=True):
        assert abs(mask.score - other.score) < 1e-3
        assert iou(mask.array, other.array) >= 0.999
