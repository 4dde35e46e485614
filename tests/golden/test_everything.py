""" "Everything" against `segment_anything`'s `SamAutomaticMaskGenerator` on the same weights."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from segment_anything import SamAutomaticMaskGenerator
from segment_anything.modeling import Sam

from serve_app.capabilities import Everything, EverythingMode, SegmentRequest
from serve_app.core.inference import DecodeJob
from serve_app.core.settings import GraphSettings
from serve_app.core.types import Mask, RgbArray
from serve_app.engines.sam.decoder import SamDecoder
from serve_app.engines.sam.model import load_sam
from serve_app.flow.flow import SegmentationFlow
from serve_app.local import build_local_service
from serve_tools.evaluation.everything import (
    drawn_images,
    metas_generator,
    score_everything,
    service_generator,
)
from serve_tools.evaluation.metrics import iou_matrix

from .cases import iou, photo

pytestmark = pytest.mark.weights

PARAMETERS: dict[str, dict[str, Any]] = {
    "defaults": {"points_per_side": 6},
    "small_regions": {
        "points_per_side": 5,
        "points_per_batch": 7,
        "pred_iou_thresh": 0.7,
        "stability_score_thresh": 0.8,
        "box_nms_thresh": 0.6,
        "min_mask_region_area": 150,
    },
    "crops": {
        "points_per_side": 4,
        "pred_iou_thresh": 0.8,
        "stability_score_thresh": 0.85,
        "stability_score_offset": 0.8,
        "crop_n_layers": 1,
        "crop_n_points_downscale_factor": 2,
        "crop_overlap_ratio": 0.3,
    },
    "no_filters": {"points_per_side": 2, "pred_iou_thresh": 0, "stability_score_thresh": 0},
}


@pytest.fixture(scope="module")
def sam(weight_paths: Callable[[str], dict[str, Path]]) -> Sam:
    return load_sam("vit_t", weight_paths("vit_t")["checkpoint"])


@pytest.fixture(scope="module")
def service(one_variant: Callable[..., GraphSettings]) -> SegmentationFlow:
    return build_local_service(one_variant("vit_t"))


@pytest.mark.parametrize("name", PARAMETERS)
async def test_records_equal_metas(service: SegmentationFlow, sam: Sam, name: str) -> None:
    image: RgbArray = photo("coffee") if name == "small_regions" else photo("chelsea")
    parameters = PARAMETERS[name]
    task = Everything(**parameters, mode=EverythingMode.EXACT)
    result = await service.segment(SegmentRequest(image=image, task=task))
    (answer,) = result.results
    with torch.inference_mode():
        records = SamAutomaticMaskGenerator(sam, **parameters).generate(image)
    assert len(answer.masks) == len(records) > 2
    for mask, record in _matched(answer.masks, records):
        assert iou(mask.array, record["segmentation"]) >= 0.99
        assert mask.score == pytest.approx(record["predicted_iou"], abs=1e-3)
        assert mask.stability_score == pytest.approx(record["stability_score"], abs=5e-3)
        assert mask.point_coords[0] == pytest.approx(record["point_coords"][0], abs=1e-3)
        assert list(mask.crop_box or ()) == record["crop_box"]
        assert mask.area == pytest.approx(record["area"], rel=0.01, abs=3)
        # Meta's boxes end at the last pixel, COCO's behind it.
        x, y, w, h = record["bbox"]
        np.testing.assert_allclose(mask.bbox, (x, y, w + 1, h + 1), atol=2)
    if name == "crops":
        whole = (0, 0, image.shape[1], image.shape[0])
        assert {mask.crop_box == whole for mask in answer.masks} == {True, False}
    else:
        scores = [mask.score for mask in answer.masks]
        assert name == "small_regions" or scores == sorted(scores, reverse=True)


def _matched(
    masks: tuple[Mask, ...], records: list[dict[str, Any]]
) -> list[tuple[Mask, dict[str, Any]]]:
    """Each mask with its record: near ties in score may change places, nothing else may."""
    pairs = []
    for place, mask in enumerate(masks):
        near = sorted(range(len(records)), key=lambda i: abs(i - place))[:5]
        pairs.append((mask, max((records[i] for i in near), key=_likeness_to(mask))))
    assert len({id(record) for _, record in pairs}) == len(records)
    return pairs


def _likeness_to(mask: Mask) -> Callable[[dict[str, Any]], float]:
    array = mask.array
    return lambda record: iou(array, record["segmentation"])


async def test_the_fast_mode_finds_the_same_objects_with_fewer_prompts(
    service: SegmentationFlow, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Drawn cells, so that the objects are known."""
    asked = 0
    decode_batch = SamDecoder.decode_batch

    def counted(self: SamDecoder, jobs: Sequence[DecodeJob]) -> list[tuple[Mask, ...]]:
        nonlocal asked
        asked += len(jobs)
        return decode_batch(self, jobs)

    monkeypatch.setattr(SamDecoder, "decode_batch", counted)
    (_, cells) = drawn_images([11], width=320, height=256)
    found, prompts = {}, {}
    for mode in EverythingMode:
        asked = 0
        task = Everything(points_per_side=14, mode=mode)
        result = await service.segment(SegmentRequest(image=cells.pixels, task=task))
        rles = [mask.rle for mask in result.results[0].masks]
        found[mode] = int((iou_matrix(rles, cells.objects).max(axis=0) >= 0.5).sum())
        prompts[mode] = asked
    assert prompts[EverythingMode.FAST] < prompts[EverythingMode.EXACT] == 14**2
    assert found[EverythingMode.FAST] >= found[EverythingMode.EXACT] > 0


def test_generators_are_measured_side_by_side(one_variant: Callable[..., GraphSettings]) -> None:
    """The harness of the benchmark, at its smallest."""
    settings = one_variant("vit_t")
    task = Everything(points_per_side=2, pred_iou_thresh=0, stability_score_thresh=0)
    generators = {
        "meta": metas_generator(settings, "golden", task),
        "ours": service_generator(settings, task.model_copy(update={"mode": EverythingMode.EXACT})),
    }
    scores = score_everything(generators, drawn_images([3], width=160, height=128))
    meta, ours = scores["meta"], scores["ours"]
    assert len(meta.seconds) == len(ours.seconds) == 2
    assert (ours.objects, ours.found, ours.masks) == (meta.objects, meta.found, meta.masks)
    assert ours.mean_iou == pytest.approx(meta.mean_iou, abs=1e-3)
    assert meta.masks > 2
