"""SAM 2 tiny: grouped and chunked batches against its session, asked for one prompt at a time."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import map_coordinates

from serve_app.capabilities import SegmentRequest
from serve_app.core.inference import DecodeJob, DecodeOptions, Embedding
from serve_app.core.settings import GraphSettings
from serve_app.core.types import CacheTier, Prompt, RgbArray
from serve_app.local import build_local_service
from serve_app.models.factory import ModelSource

from .cases import TWO_THREADS, Reference, cases_of, check_against, iou, photo

pytestmark = pytest.mark.weights

PHOTO = "chelsea"
Features = Mapping[str, NDArray[Any]]


def _session(path: Path) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 2
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def _resized_logits(logits: NDArray[Any], height: int, width: int) -> NDArray[np.float32]:
    """Bilinear with pixel centres, written out: SAM 2's way from 256 x 256 to the image."""

    def weights(size: int) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
        place = np.clip((np.arange(size) + 0.5) * 256 / size - 0.5, 0, None)
        low = np.minimum(place.astype(int), 255)
        return low, np.minimum(low + 1, 255), (place - low).astype(np.float32)

    top, bottom, down = weights(height)
    left, right, across = weights(width)
    rows = logits[:, top] * (1 - down[:, None]) + logits[:, bottom] * down[:, None]
    return rows[:, :, left] * (1 - across) + rows[:, :, right] * across


def _stretched(logits: NDArray[Any], height: int, width: int) -> NDArray[np.float32]:
    """Logits of the image padded to a square, as SAM 2 takes them: of the image stretched."""
    longer = max(height, width)
    sides = [math.floor(1024 * side / longer + 0.5) / 4 for side in (height, width)]
    part = logits[: math.ceil(sides[0]), : math.ceil(sides[1])]
    places = [(np.arange(256) + 0.5) * side / 256 - 0.5 for side in sides]
    grid = np.meshgrid(*places, indexing="ij")
    found: NDArray[np.float32] = map_coordinates(part, grid, order=1, mode="nearest")
    return found


@pytest.fixture(scope="module")
def paths(weight_paths: Callable[[str], dict[str, Path]]) -> dict[str, Path]:
    return weight_paths("sam2_hiera_tiny")


@pytest.fixture(scope="module")
def features(paths: dict[str, Path]) -> Features:
    """One photograph, stretched to 1024 x 1024, normalised as ImageNet is, encoded."""
    image = Image.fromarray(photo(PHOTO)).resize((1024, 1024), Image.Resampling.BILINEAR)
    values = np.asarray(image, dtype=np.float32) / 255
    values = (values - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    tensor = values.transpose(2, 0, 1)[None].astype(np.float32)
    names = ["high_res_feats_0", "high_res_feats_1", "image_embed"]
    found = _session(paths["encoder"]).run(names, {"image": tensor})
    return dict(zip(names, found, strict=True))


@pytest.fixture(scope="module")
def ask(paths: dict[str, Path], features: Features) -> Callable[[Prompt], Reference]:
    """The decoder's session, asked for one prompt as its inputs are documented."""
    session = _session(paths["decoder"])
    height, width = photo(PHOTO).shape[:2]
    scale = np.array([1024 / width, 1024 / height])

    def answer(prompt: Prompt) -> Reference:
        coords: list[Any] = [] if prompt.box is None else list(prompt.box.reshape(2, 2) * scale)
        labels = [] if prompt.box is None else [2, 3]
        if prompt.point_coords is not None and prompt.point_labels is not None:
            coords += list(prompt.point_coords * scale)
            labels += prompt.point_labels.tolist()
        if not labels:
            coords, labels = [[512, 512]], [-1]
        masked = prompt.mask_input is not None
        mask = np.zeros((256, 256), np.float32)
        if prompt.mask_input is not None:
            mask = _stretched(prompt.mask_input, height, width)
        logits, scores = session.run(
            ["masks", "iou_predictions"],
            {
                **features,
                "point_coords": np.array([coords], np.float32),
                "point_labels": np.array([labels], np.float32),
                "mask_input": np.asarray(mask)[None, None],
                "has_mask_input": np.array([masked], np.float32),
            },
        )
        return Reference(_resized_logits(logits[0], height, width) > 0, scores[0], logits[0])

    return answer


def _of(reference: Reference, prompt: Prompt) -> Reference:
    """All three masks, or the best of them where one is asked for."""
    if prompt.multimask_output:
        return reference
    best = slice(int(reference.scores.argmax()), int(reference.scores.argmax()) + 1)
    return Reference(reference.masks[best], reference.scores[best], reference.logits[best])


async def test_the_flow_answers_as_the_session_does(
    ask: Callable[[Prompt], Reference], one_variant: Callable[..., GraphSettings]
) -> None:
    image: RgbArray = photo(PHOTO)
    # Twice, so that groups hold several prompts, and are cut where they are long.
    prompts = [case.prompt for case in cases_of(PHOTO)] * 2
    prompts += [Prompt(point_coords=[[40.0 * i, 60]], point_labels=[1]) for i in range(5)]
    random.Random(3).shuffle(prompts)
    service = build_local_service(one_variant("sam2_hiera_tiny"))
    result = await service.segment(SegmentRequest(image=image, task=prompts))
    assert result.cache is CacheTier.MISS
    references: dict[int, Reference] = {}
    for prompt, answer in zip(prompts, result.results, strict=True):
        if id(prompt) not in references:
            references[id(prompt)] = _of(ask(prompt), prompt)
        check_against(answer.masks, references[id(prompt)])
        assert len(answer.masks) == (3 if prompt.multimask_output else 1)


def test_prompts_of_two_images_do_not_mix(features: Features) -> None:
    decoder = ModelSource().load_decoder("sam2_hiera_tiny", TWO_THREADS)
    tensors = {name: tensor[0] for name, tensor in features.items()}
    mirrored = {name: np.ascontiguousarray(t[..., ::-1]) for name, t in tensors.items()}
    one, two = (Embedding(t, height=300, width=451) for t in (tensors, mirrored))
    prompt = cases_of(PHOTO)[0].prompt
    jobs = [DecodeJob(e, prompt, DecodeOptions()) for e in (one, two, one)]
    together = decoder.decode_batch(jobs)
    alone = [decoder.decode_batch([job])[0] for job in jobs]
    for masks, wanted in zip(together, alone, strict=True):
        for mask, other in zip(masks, wanted, strict=True):
            assert abs(mask.score - other.score) < 1e-3
            assert iou(mask.array, other.array) >= 0.999
    assert iou(together[0][2].array, together[1][2].array) < 0.9
