from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from pycocotools import mask as coco

from serve_app.core.rle import decode_rle, encode_rle, parse_rle
from serve_app.core.types import (
    BoolArray,
)
from serve_tools.evaluation.annotations import (
    EvaluationError,
    load_dataset,
    read_segmentation,
)

from .evaluation_scenes import (
    SCENE,
    SIDE,
    coco_rle,
    load,
    rectangle,
    write_dataset,
)

masks_of_any_shape = st.tuples(st.integers(1, 20), st.integers(1, 20)).flatmap(
    lambda shape: arrays(np.bool_, shape)
)


class TestAnnotations:
    def test_forms_of_one_mask_agree(self) -> None:
        mask = rectangle(10, 20, 30, 50)
        columns = mask.ravel(order="F").astype(int)
        edges = np.flatnonzero(np.diff(columns)) + 1
        plain = np.diff([0, *edges, len(columns)]).tolist()
        polygon = [10, 20, 30, 20, 30, 50, 10, 50]
        for form in (coco_rle(mask), {"size": [SIDE, SIDE], "counts": plain}, [polygon]):
            read = decode_rle(read_segmentation(form, SIDE, SIDE))
            np.testing.assert_array_equal(read, mask)

    def test_polygon_with_hole(self) -> None:
        """One ring that walks into the hole and back, as COCO's writers make holes."""
        outer, hole = [2, 2, 18, 2, 18, 18, 2, 18, 2, 2], [6, 6, 6, 14, 14, 14, 14, 6, 6, 6]
        expected = rectangle(2, 2, 18, 18) & ~rectangle(6, 6, 14, 14)
        read = decode_rle(read_segmentation([outer + hole], SIDE, SIDE))
        np.testing.assert_array_equal(read, expected)

    def test_several_polygons_are_united(self) -> None:
        two = [[0, 0, 10, 0, 10, 10, 0, 10], [5, 0, 15, 0, 15, 10, 5, 10]]
        read = decode_rle(read_segmentation(two, SIDE, SIDE))
        np.testing.assert_array_equal(read, rectangle(0, 0, 15, 10))

    @pytest.mark.parametrize(
        ("segmentation", "reason"),
        [
            (None, "neither"),
            ([], "neither"),
            ("abc", "neither"),
            ([[1, 1, 2, 2]], "three points"),
            ([[1, 1, 2, 2, 3]], "three points"),
            ([[1, 1, 2, 2, 3, float("nan")]], "not a number"),
            ([[1, 1, 2, 2, 3, "4"]], "not a number"),
            ([[0, 0, 1e9, 0, 1e9, 1e9]], "far out"),
            ({"size": [SIDE, SIDE]}, "no counts"),
            ({"size": [5, 5], "counts": [25]}, "size"),
            ({"size": [SIDE, SIDE], "counts": [1, 2]}, "add up"),
            ({"size": [SIDE, SIDE], "counts": [-1, SIDE * SIDE + 1]}, "negative"),
            ({"size": [SIDE, SIDE], "counts": [1.5]}, "non-negative"),
            ({"size": [SIDE, SIDE], "counts": "0"}, "add up"),
            ({"size": [SIDE, SIDE], "counts": "ü"}, "add up"),
            ({"size": [SIDE, SIDE], "counts": "zz\x07"}, "invalid character"),
            ({"size": [SIDE, SIDE], "counts": "P"}, "within a number"),
            ({"size": [SIDE, SIDE], "counts": "P" * 99}, "end within a number"),
            ({"size": [SIDE, SIDE], "counts": "P" * 9 + "0"}, "invalid character or number"),
        ],
    )
    def test_bad_segmentations_say_why(self, segmentation: Any, reason: str) -> None:
        with pytest.raises(ValueError, match=reason):
            read_segmentation(segmentation, SIDE, SIDE)

    @given(masks_of_any_shape)
    def test_own_run_lengths_are_accepted(self, mask: BoolArray) -> None:
        rle = encode_rle(mask)
        assert parse_rle(rle.size, rle.counts) == rle
        assert parse_rle(rle.size, rle.counts.decode()) == rle

    @given(st.binary(max_size=24))
    def test_foreign_run_lengths_cover_the_mask_or_are_refused(self, counts: bytes) -> None:
        try:
            rle = parse_rle((4, 5), counts)
        except ValueError:
            return
        assert coco.area({"size": [4, 5], "counts": rle.counts}) == decode_rle(rle).sum() <= 20

    def test_what_is_left_out_is_told(self, tmp_path: Path) -> None:
        annotation = {"image_id": 0, "category_id": 0, "iscrowd": 0}
        dataset = load(
            tmp_path,
            SCENE,
            images=[
                {"id": 7, "file_name": "gone.png", "width": 4, "height": 4},
                {"id": 8, "file_name": "../x.png", "width": 4, "height": 4},
                {"id": 9, "file_name": "sizeless.png"},
            ],
            annotations=[
                {**annotation, "id": 90, "segmentation": coco_rle(SCENE["a.png"][0]), "iscrowd": 1},
                {**annotation, "id": 91, "segmentation": [[1, 2]]},
                {**annotation, "id": 92, "segmentation": [[1, 1, 1, 1, 1, 1]]},
                {**annotation, "id": 93, "category_id": 55, "segmentation": []},
                {**annotation, "id": 94, "image_id": 66},
            ],
        )
        assert [len(image.objects) for image in dataset.images] == [2, 1]
        assert len(dataset.images[0].crowds) == 1
        assert dataset.images[0].unusable == {"thing"}
        told = [(p.kind, p.where, p.message) for p in dataset.problems]
        assert [kind for kind, _, _ in told] == [
            "image", "image", "image", "annotation", "crowd", "annotation", "annotation",
            "annotation",
        ]  # fmt: skip
        text = " | ".join(f"{where}: {message}" for _, where, message in told)
        for part in (
            "gone.png: the image file is missing",
            "../x.png: leads out of the folder",
            "sizeless.png: has no width and height",
            "annotation 90: a region of many objects",
            "annotation 91: a polygon needs at least three points",
            "annotation 92: its mask is empty",
            "annotation 93: its category_id is not among",
            "image 66: no such image",
        ):
            assert part in text

    @pytest.mark.parametrize(
        "text",
        [
            "no JSON",
            "[]",
            '{"images": []}',
            '{"images": [1], "annotations": [], "categories": []}',
            '{"images": [{}], "annotations": [], "categories": []}',
            '{"images": [{"id": []}], "annotations": [], "categories": []}',
            '{"images": [], "annotations": [{"image_id": 1, "category_id": []}], "categories": []}',
        ],
    )
    def test_other_files_are_refused(self, tmp_path: Path, text: str) -> None:
        path = tmp_path / "x.json"
        path.write_text(text)
        with pytest.raises(EvaluationError, match="not COCO's JSON"):
            load_dataset(tmp_path, path)

    def test_missing_files_and_empty_sets_are_refused(self, tmp_path: Path) -> None:
        with pytest.raises(EvaluationError, match="cannot be read"):
            load_dataset(tmp_path, tmp_path / "none.json")
        path = write_dataset(tmp_path, SCENE)
        with pytest.raises(EvaluationError, match="not a folder"):
            load_dataset(tmp_path / "none", path)
        for name in SCENE:
            (tmp_path / name).unlink()
        with pytest.raises(EvaluationError, match=r"usable object \(a\.png: .* is missing\)"):
            load_dataset(tmp_path, path)

    def test_limit_draws_the_same_images_for_a_seed(self, tmp_path: Path) -> None:
        path = write_dataset(tmp_path, {f"{i}.png": SCENE["b.png"] for i in range(20)})
        drawn = [
            [i.file_name for i in load_dataset(tmp_path, path, limit=5, seed=s).images]
            for s in (0, 0, 1)
        ]
        assert drawn[0] == drawn[1] != drawn[2]
        assert len(drawn[0]) == 5
