"""Candidate regions: the grid, the detector's boxes, contours."""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from skimage import data

from serve_app.core.errors import InvalidRequest, WeightsUnavailable
from serve_app.core.inference import Proposal
from serve_app.core.types import ProposalSource, RgbArray
from serve_app.engines.efficientdet.detector import Detection, EfficientDet
from serve_app.engines.proposals import MAX_CONTOURS, Proposals, contour_proposals

WeightPaths = Callable[[str], dict[str, Path]]


class FixedDetector:
    """A stand-in that always finds the same."""

    def __init__(self, *found: Detection) -> None:
        self.found = list(found)

    def detect(self, pixels: RgbArray) -> list[Detection]:
        return self.found


def propose(
    image: np.ndarray, source: ProposalSource, side: int = 32, detector: Any = None
) -> tuple[Proposal, ...]:
    return Proposals(detector).propose(image, (image.shape[1], image.shape[0]), source, side)


def boxes_of(proposals: tuple[Proposal, ...]) -> np.ndarray:
    return np.array([p.prompt.box for p in proposals]).reshape(-1, 4)


def best_iou(proposals: tuple[Proposal, ...], box: tuple[float, float, float, float]) -> float:
    best = 0.0
    for other in boxes_of(proposals):
        w = min(box[2], other[2]) - max(box[0], other[0])
        h = min(box[3], other[3]) - max(box[1], other[1])
        both = max(0.0, w) * max(0.0, h)
        areas = [(b[2] - b[0]) * (b[3] - b[1]) for b in (box, other)]
        best = max(best, float(both / (sum(areas) - both)))
    return best


def blobs(ground: int, *values: int, shape: tuple[int, int] = (200, 300)) -> RgbArray:
    """A ground with blobs of radius 14 in a row, at (40 + 60 i, 100)."""
    image = np.full((*shape, 3), ground, np.uint8)
    for i, value in enumerate(values):
        cv2.circle(image, (40 + 60 * i, 100), 14, (value,) * 3, cv2.FILLED)
    noise = np.random.default_rng(0).normal(0, 3, image.shape)
    return np.clip(image + noise, 0, 255).astype(np.uint8)


@pytest.mark.parametrize("side", [1, 2, 7, 32])
def test_the_grid_is_exactly_that_of_segment_anything(side: int) -> None:
    from segment_anything.utils.amg import build_point_grid

    image = np.zeros((75, 130, 3), np.uint8)
    proposals = propose(image, ProposalSource.GRID, side)
    points = np.array([p.prompt.point_coords[0] for p in proposals])
    expected = (build_point_grid(side) * (130, 75)).astype(np.float32)
    np.testing.assert_allclose(points, expected, rtol=1e-6)
    assert all(p.prompt.point_labels.tolist() == [1] for p in proposals)
    assert all(p.objectness == 1 and p.label is None for p in proposals)


@pytest.mark.parametrize("side", [0, -3])
def test_a_grid_without_points_is_refused(side: int) -> None:
    with pytest.raises(InvalidRequest) as caught:
        propose(np.zeros((9, 9, 3), np.uint8), ProposalSource.GRID, side)
    assert caught.value.field == "points_per_side"


def test_without_a_detector_the_error_names_what_can_be_used() -> None:
    with pytest.raises(InvalidRequest, match="'grid' or 'contours'") as caught:
        propose(np.zeros((9, 9, 3), np.uint8), ProposalSource.DETECTOR, 32)
    assert caught.value.field == "proposals"


def test_detections_become_boxes_with_labels() -> None:
    detector = FixedDetector(Detection((1.5, 2, 30, 40), "cat", 0.8))
    (found,) = propose(np.zeros((50, 50, 3), np.uint8), ProposalSource.DETECTOR, detector=detector)
    assert found.prompt.box.tolist() == [1.5, 2, 30, 40]
    assert (found.label, found.objectness) == ("cat", 0.8)
    assert found.source is ProposalSource.DETECTOR


@pytest.mark.parametrize(
    ("ground", "values"),
    [(200, (60, 90, 120)), (40, (120, 200, 250)), (120, (30, 230, 60))],
    ids=["dark on light", "light on dark", "both on gray"],
)
def test_contours_find_blobs_of_either_polarity(ground: int, values: tuple[int, ...]) -> None:
    found = propose(blobs(ground, *values), ProposalSource.CONTOURS, 32)
    for i in range(len(values)):
        x = 40 + 60 * i
        assert best_iou(found[:6], (x - 14, 86, x + 15, 115)) > 0.7
    scores = [p.objectness for p in found]
    assert scores == sorted(scores, reverse=True)
    assert all(0 <= s <= 1 for s in scores)


def test_a_contours_box_holds_all_of_its_object() -> None:
    found = propose(blobs(200, 40), ProposalSource.CONTOURS, 32)
    x0, y0, x1, y1 = boxes_of(found)[0]
    assert 18 <= x0 < 26
    assert 78 <= y0 < 86
    assert 55 < x1 <= 63
    assert 115 < y1 <= 123


def test_an_even_image_has_no_contours() -> None:
    even = np.full((120, 160, 3), 127, np.uint8)
    assert propose(even, ProposalSource.CONTOURS) == ()


def test_specks_and_the_ground_itself_are_left_out() -> None:
    image = blobs(200, 60)
    image[20:22, 20:22] = 0
    found = propose(image, ProposalSource.CONTOURS, 32)
    sizes = boxes_of(found)[:, 2:] - boxes_of(found)[:, :2]
    assert best_iou(found, (20, 20, 22, 22)) < 0.1
    assert (sizes.prod(axis=1) < 0.6 * image.shape[0] * image.shape[1]).all()


def test_contours_are_bounded_in_number_and_the_best_stay() -> None:
    image = np.full((800, 800, 3), 210, np.uint8)
    for x in range(10, 800, 20):
        for y in range(10, 800, 20):
            cv2.circle(image, (x, y), 6, (60 + x // 6,) * 3, cv2.FILLED)
    found = contour_proposals(image)
    assert len(found) == MAX_CONTOURS
    assert min(p.objectness for p in found) > 0.7


def test_large_images_are_shrunk_and_boxes_are_not() -> None:
    image = np.full((3000, 4500, 3), 200, np.uint8)
    image[2000:2400, 3000:3700] = 50
    found = propose(image, ProposalSource.CONTOURS, 32)
    assert best_iou(found, (3000, 2000, 3700, 2400)) > 0.75


@pytest.mark.parametrize("shape", [(1, 1), (1, 500), (500, 1), (3, 3), (11, 11)])
@pytest.mark.parametrize("source", [ProposalSource.GRID, ProposalSource.CONTOURS])
def test_very_small_images_do_no_harm(shape: tuple[int, int], source: ProposalSource) -> None:
    image = np.random.default_rng(0).integers(0, 255, (*shape, 3), np.uint8)
    for proposal in propose(image, source, 4):
        # Inside the image as it is.
        assert proposal.prompt.inside(shape[1], shape[0])[0] is proposal.prompt


@pytest.fixture(scope="module")
def detector(weight_paths: WeightPaths) -> EfficientDet:
    return EfficientDet(weight_paths("efficientdet_lite2")["model"], threads=1)


@pytest.mark.weights
def test_the_detector_finds_what_is_on_photos(detector: EfficientDet) -> None:
    cat = detector.detect(data.chelsea())[0]
    assert cat.label == "cat"
    assert cat.score > 0.7
    found = {d.label: d for d in detector.detect(data.coffee())}
    assert {"cup", "spoon", "dining table"} <= found.keys()
    # The cup of the photo lies at about (165, 20) to (420, 315).
    np.testing.assert_allclose(found["cup"].box, (165, 20, 420, 315), atol=25)


@pytest.mark.weights
def test_detections_are_in_the_image_and_best_first(detector: EfficientDet) -> None:
    photo = data.chelsea()
    for image in (photo, photo[:, :90], photo[:40], photo[::8, ::8], photo[:1, :1]):
        height, width = image.shape[:2]
        found = detector.detect(np.ascontiguousarray(image))
        scores = [d.score for d in found]
        assert scores == sorted(scores, reverse=True)
        for d in found:
            assert d.score >= 0.2
            assert 0 <= d.box[0] < d.box[2] <= width
            assert 0 <= d.box[1] < d.box[3] <= height


@pytest.mark.weights
def test_the_detector_knows_the_labels_of_coco(detector: EfficientDet) -> None:
    assert len(detector.labels) == 80
    assert "???" not in detector.labels.values()


def test_other_files_are_no_detector(tmp_path: Path) -> None:
    garbage = tmp_path / "garbage.tflite"
    garbage.write_bytes(b"TFL3" * 100)
    empty = tmp_path / "labels_only.tflite"
    with zipfile.ZipFile(empty, "w") as archive:
        archive.writestr("labelmap.txt", "person\n")
    for path in (garbage, empty, tmp_path / "missing.tflite"):
        with pytest.raises(WeightsUnavailable) as caught:
            EfficientDet(path, threads=1)
        assert str(tmp_path) not in caught.value.message


def test_a_label_map_that_inflates_without_end_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "bomb.tflite"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("labelmap.txt", b"\n" * 10_000_000)
    with pytest.raises(WeightsUnavailable) as caught:
        EfficientDet(path, threads=1)
    assert "too long" in str(caught.value.__cause__)
