"""COCO annotations as ground truth, with a reason for each that is unusable.

Format: https://cocodataset.org/#format-data.  Several polygons of one object are united, as
COCO does; holes come as RLE, or as a ring that walks in and out of the hole.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pycocotools import mask as coco

from serve_app.core.rle import Rle, decode_rle, encode_rle, parse_rle
from serve_tools.evaluation.metrics import sample_indices


class EvaluationError(Exception):
    """The evaluation cannot start; the text says what to change."""


@dataclass(frozen=True, slots=True)
class Problem:
    """Something excluded from the figures; the report lists it."""

    kind: str
    where: str
    message: str


@dataclass(frozen=True, slots=True)
class GroundTruth:
    """One annotated object.

    Attributes:
        annotation_id: as in the file.
        category: the category's name.
        rle: the mask at the image's full size.
        area: pixels of that mask (not the file's ``area``, which may be a polygon's).
    """

    annotation_id: int
    category: str
    rle: Rle
    area: int


@dataclass(frozen=True, slots=True)
class AnnotatedImage:
    """One image with its ground truth.

    Attributes:
        index: place in the annotation file; identifies the image in all figures.
        objects: usable objects, in the file's order.
        crowds: regions of many objects (``iscrowd``) by category: never prompted for.
        unusable: categories of which an annotation of this image could not be read.
    """

    index: int
    file_name: str
    path: Path
    width: int
    height: int
    objects: tuple[GroundTruth, ...]
    crowds: tuple[tuple[str, Rle], ...] = ()
    unusable: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Dataset:
    """The images to evaluate on, and what was excluded."""

    images: tuple[AnnotatedImage, ...]
    categories: tuple[str, ...]
    problems: tuple[Problem, ...]
    sha256: str


def load_dataset(
    images_dir: Path, annotations: Path, *, limit: int | None = None, seed: int = 0
) -> Dataset:
    """Read COCO annotations and keep the images that have a file and an object.

    Args:
        images_dir: the folder that ``file_name`` is relative to.
        annotations: the JSON file.
        limit: at most this many images, chosen with ``seed``, in the file's order.

    Raises:
        EvaluationError: the file cannot be read, is not COCO's, or has nothing usable.
    """
    try:
        raw = annotations.read_bytes()
    except OSError as exc:
        raise EvaluationError(f"the annotations {annotations} cannot be read") from exc
    if not images_dir.is_dir():
        raise EvaluationError(f"{images_dir} is not a folder of images")
    records, by_image, names = _tables(raw)
    problems: list[Problem] = []

    chosen: list[tuple[int, Mapping[str, Any], Path]] = []
    for index, record in enumerate(records):
        try:
            path = _image_path(images_dir, record)
        except ValueError as exc:
            problems.append(Problem("image", str(record.get("file_name", index)), str(exc)))
            continue
        if any(not a.get("iscrowd") for a in by_image.get(record["id"], ())):
            chosen.append((index, record, path))
    known = {record.get("id") for record in records}
    for image_id in by_image.keys() - known:
        problems.append(Problem("annotation", f"image {image_id}", "no such image in the file"))
    chosen = [chosen[i] for i in sample_indices(len(chosen), limit, seed)]

    images = []
    for index, record, path in chosen:
        image = _annotated(index, record, path, by_image[record["id"]], names, problems)
        if image.objects:
            images.append(image)
    if not images:
        first = f" ({problems[0].where}: {problems[0].message})" if problems else ""
        raise EvaluationError(f"no image has a file and a usable object{first}")
    categories = tuple(dict.fromkeys(names.values()))
    return Dataset(tuple(images), categories, tuple(problems), hashlib.sha256(raw).hexdigest())


def _tables(
    raw: bytes,
) -> tuple[list[Mapping[str, Any]], dict[Any, list[Mapping[str, Any]]], dict[Any, str]]:
    """Images, annotations by image id, category names by id."""
    try:
        data = json.loads(raw)
        for key in ("images", "annotations", "categories"):
            if not all(isinstance(item, dict) for item in data[key]):
                raise TypeError(key)
        names = {c["id"]: str(c["name"]) for c in data["categories"]}
        by_image: dict[Any, list[Mapping[str, Any]]] = {}
        for annotation in data["annotations"]:
            by_image.setdefault(annotation["image_id"], []).append(annotation)
            hash(annotation.get("category_id"))  # a list or object names no category
        images = [(i["id"], i) for i in data["images"]]
        if len(dict(images)) != len(images):
            raise EvaluationError("two images of the annotation file have the same id")
    except (ValueError, KeyError, TypeError, RecursionError) as exc:
        raise EvaluationError(
            "the annotations are not COCO's JSON: an object with the lists images (id, "
            "file_name, width, height), annotations (image_id, category_id, segmentation) and "
            "categories (id, name)"
        ) from exc
    return [record for _, record in images], by_image, names


def _image_path(folder: Path, record: Mapping[str, Any]) -> Path:
    name = record.get("file_name")
    if not isinstance(name, str) or not name:
        raise ValueError("has no file_name")
    if any(type(record.get(k)) is not int or record[k] < 1 for k in ("width", "height")):
        raise ValueError("has no width and height in pixels")
    path = folder / name
    if not path.resolve().is_relative_to(folder.resolve()):
        raise ValueError("leads out of the folder of images")
    if not path.is_file():
        raise ValueError("the image file is missing")
    return path


def _annotated(
    index: int,
    record: Mapping[str, Any],
    path: Path,
    annotations: Sequence[Mapping[str, Any]],
    names: Mapping[Any, str],
    problems: list[Problem],
) -> AnnotatedImage:
    height, width = record["height"], record["width"]
    objects: list[GroundTruth] = []
    crowds: list[tuple[str, Rle]] = []
    unusable: set[str] = set()
    for place, annotation in enumerate(annotations):
        category = names.get(annotation.get("category_id"))
        identity = annotation.get("id", place)
        where = f"{record['file_name']}, annotation {identity}"
        try:
            if category is None:
                raise ValueError("its category_id is not among the categories")
            rle = read_segmentation(annotation.get("segmentation"), height, width)
            area = int(coco.area({"size": [height, width], "counts": rle.counts}))
            if area == 0:
                raise ValueError("its mask is empty")
        except ValueError as exc:
            problems.append(Problem("annotation", where, str(exc)))
            if category is not None:
                unusable.add(category)
            continue
        if annotation.get("iscrowd"):
            problems.append(Problem("crowd", where, "a region of many objects (iscrowd)"))
            crowds.append((category, rle))
        else:
            objects.append(GroundTruth(identity, category, rle, area))
    return AnnotatedImage(
        index, record["file_name"], path, width, height, tuple(objects), tuple(crowds),
        frozenset(unusable),
    )  # fmt: skip


def read_segmentation(segmentation: Any, height: int, width: int) -> Rle:
    """A COCO ``segmentation`` (polygons, compressed or plain RLE) as a checked RLE.

    Raises:
        ValueError: another format, or it does not fit the image; the text is the reason.
    """
    if isinstance(segmentation, dict):
        if segmentation.get("size") != [height, width]:
            raise ValueError(f"its RLE is not of the image's size, {width} x {height} pixels")
        counts = segmentation.get("counts")
        if not isinstance(counts, (str, list)):
            raise ValueError("its RLE has no counts")
        # Re-encoded: empty runs by other writers break later steps.
        return encode_rle(decode_rle(parse_rle((height, width), counts)))
    if isinstance(segmentation, list) and segmentation:
        for ring in segmentation:
            _check_ring(ring, height, width)
        merged = coco.merge(coco.frPyObjects(segmentation, height, width))
        return Rle((height, width), merged["counts"])
    raise ValueError("its segmentation is neither polygons nor RLE")


def _check_ring(ring: Any, height: int, width: int) -> None:
    if not isinstance(ring, list) or len(ring) < 6 or len(ring) % 2:
        raise ValueError("a polygon needs at least three points, written x, y, x, y, ...")
    if any(type(v) not in (int, float) or not math.isfinite(v) for v in ring):
        raise ValueError("a polygon holds something that is not a number")
    # Rasterising costs memory by the length of an edge, inside the image or not.
    for values, side in ((ring[0::2], width), (ring[1::2], height)):
        if min(values) < -side or max(values) > 2 * side:
            raise ValueError("a polygon reaches far out of the image")
