"""Compares generators of "everything": time, and objects found.

A generator is any callable from an image to its masks: this service in one of its modes
(`service_generator`), or Meta's ``SamAutomaticMaskGenerator`` (`metas_generator`).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from serve_app.capabilities import Everything, SegmentRequest
from serve_app.core.limits import Limits
from serve_app.core.rle import Rle, encode_rle
from serve_app.core.settings import GraphSettings
from serve_app.core.types import RgbArray
from serve_app.images.decode import decode_image
from serve_tools.evaluation.annotations import Dataset
from serve_tools.evaluation.metrics import iou_matrix, match_greedily
from serve_tools.evaluation.records import FOUND_IOU
from serve_tools.references.families import family_tools

Generator = Callable[[RgbArray], Sequence[Rle]]
"""All masks of an upright ``(H, W, 3) uint8`` RGB image."""

_OWN = {"proposals", "mode"}  # parameters that Meta's generator does not have


@dataclass(frozen=True, slots=True, eq=False)
class KnownImage:
    """An image and the masks of the objects in it."""

    pixels: RgbArray
    objects: tuple[Rle, ...]


@dataclass(frozen=True, slots=True)
class EverythingScore:
    """One generator on some images.

    Attributes:
        objects: how many there are.
        found: how many of them have a mask of their own with an IoU of at least 0.5.
        mean_iou: of each object with its mask, 0 where it has none.
        masks: number of masks returned on all images.
        seconds: for each image, from its pixels to the masks.
    """

    objects: int
    found: int
    mean_iou: float
    masks: int
    seconds: tuple[float, ...]

    @property
    def recall(self) -> float:
        return self.found / self.objects


def score_everything(
    generators: Mapping[str, Generator], images: Iterable[KnownImage]
) -> dict[str, EverythingScore]:
    """Run the generators in turn on each image, so that a slow period affects all of them.

    Args:
        generators: each sees an image once.
        images: with at least one object in all.
    """
    ious: dict[str, list[float]] = {name: [] for name in generators}
    masks: dict[str, int] = dict.fromkeys(generators, 0)
    seconds: dict[str, list[float]] = {name: [] for name in generators}
    for place, image in enumerate(images):
        names = list(generators)
        first = place % len(names)
        for name in names[first:] + names[:first]:
            begun = time.perf_counter()
            generated = generators[name](image.pixels)
            seconds[name].append(time.perf_counter() - begun)
            masks[name] += len(generated)
            ious[name] += _ious(generated, image.objects)
    return {
        name: EverythingScore(
            objects=len(ious[name]),
            found=sum(iou >= FOUND_IOU for iou in ious[name]),
            mean_iou=float(np.mean(ious[name])),
            masks=masks[name],
            seconds=tuple(seconds[name]),
        )
        for name in generators
    }


def _ious(masks: Sequence[Rle], objects: Sequence[Rle]) -> list[float]:
    """IoU of each object with its own mask; no mask is used twice."""
    table = iou_matrix(masks, objects)
    partner = match_greedily(table)
    return [float(table[mask, i]) if mask >= 0 else 0.0 for i, mask in enumerate(partner)]


def service_generator(settings: GraphSettings, task: Everything) -> Generator:
    """This service in this process, with models loaded and nothing cached."""
    from serve_app.local import build_local_service

    service = build_local_service(settings)
    # The service's locks belong to one event loop.
    runner = asyncio.Runner()

    def generate(pixels: RgbArray, task: Everything = task) -> list[Rle]:
        result = runner.run(service.segment(SegmentRequest(image=pixels, task=task)))
        return [mask.rle for mask in result.results[0].masks]

    generate(np.zeros((64, 64, 3), np.uint8), Everything(points_per_side=1))
    return generate


def metas_generator(settings: GraphSettings, variant: str, task: Everything) -> Generator:
    """``SamAutomaticMaskGenerator`` with the weights of a variant.

    Raises:
        ValueError: `segment_anything` has no such model.
    """
    import torch
    from segment_anything import SamAutomaticMaskGenerator

    from serve_app.engines.devices import apply_compute
    from serve_app.models.factory import ModelSource

    chosen = settings.variants[variant]
    source = ModelSource.of(settings)
    apply_compute(chosen.decoder.compute)
    load = family_tools(source.spec(chosen.model).family).load_original
    if load is None:
        raise ValueError(f"{chosen.model} has no library of its authors here")
    sam = load(source.weights(chosen.model), chosen.decoder.compute.device)
    parameters = task.model_dump(exclude=set(_OWN))
    generator = SamAutomaticMaskGenerator(sam, **parameters, output_mode="coco_rle")

    def generate(pixels: RgbArray) -> list[Rle]:
        with torch.inference_mode():
            records = generator.generate(pixels)
        found = [record["segmentation"] for record in records]
        return [Rle((r["size"][0], r["size"][1]), r["counts"].encode()) for r in found]

    return generate


def drawn_images(seeds: Sequence[int], width: int = 768, height: int = 640) -> list[KnownImage]:
    """Synthetic scenes and cells with exact masks, one of each for a seed."""
    from serve_tools.synthetic.cells import draw_cells
    from serve_tools.synthetic.scenes import draw_scene

    images = []
    for seed in seeds:
        scene = draw_scene(seed, objects=24, width=width, height=height)
        cells = draw_cells(seed, width, height)
        images += [
            KnownImage(scene.pixels, tuple(encode_rle(o.mask) for o in scene.objects)),
            KnownImage(cells.pixels, tuple(encode_rle(mask) for mask in cells.masks)),
        ]
    return images


def annotated_images(dataset: Dataset, limits: Limits) -> Iterable[KnownImage]:
    """The images of a COCO dataset, decoded one after the other.

    Raises:
        InvalidImage: a file cannot be decoded.
    """
    for image in dataset.images:
        pixels = decode_image(image.path.read_bytes(), limits)
        yield KnownImage(pixels, tuple(found.rle for found in image.objects))
