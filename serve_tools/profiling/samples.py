"""Images with exact masks to measure on: synthetic scenes, or the operator's annotated images."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from serve_app.core.errors import SamServeError
from serve_app.core.limits import Limits
from serve_app.core.rle import Rle, encode_rle
from serve_app.core.types import RgbArray
from serve_app.images.decode import decode_image
from serve_tools.evaluation.annotations import AnnotatedImage, Dataset, load_dataset
from serve_tools.evaluation.metrics import sample_indices
from serve_tools.profiling.protocol import Effort
from serve_tools.synthetic.cells import draw_cells
from serve_tools.synthetic.scenes import draw_scene

SCENES = "synthetic shapes and cells"
_SCENE_SEED = 1_000_003  # apart from the seeds used elsewhere


@dataclass(frozen=True, slots=True, eq=False)
class Sample:
    """One upright ``(H, W, 3) uint8`` RGB image, and its objects by index in the image."""

    index: int
    pixels: RgbArray
    objects: tuple[tuple[int, Rle], ...]


@dataclass(frozen=True, slots=True)
class SampleSet:
    """Samples, generated one at a time; the same effort gives the same ones.

    Attributes:
        name: shown in reports.
        sha256: of the annotation file.
    """

    effort: Effort
    limits: Limits
    name: str
    dataset: Dataset | None

    @property
    def sha256(self) -> str | None:
        return None if self.dataset is None else self.dataset.sha256

    def __iter__(self) -> Iterator[Sample]:
        if self.dataset is None:
            yield from map(self._scene, range(self.effort.images))
            return
        for image in self.dataset.images:
            try:
                yield self._annotated(image)
            except (OSError, ValueError, SamServeError):
                print(f"skipped: {image.file_name} cannot be used", file=sys.stderr)

    def _scene(self, index: int) -> Sample:
        """Shapes and cells alternately: easy for any variant, and hard."""
        seed = _SCENE_SEED + 1000 * self.effort.seed + index
        if index % 2:
            cells = draw_cells(seed)
            pixels, masks = cells.pixels, list(cells.masks)
        else:
            scene = draw_scene(seed)
            pixels, masks = scene.pixels, [item.mask for item in scene.objects]
        return Sample(index, pixels, self._sampled(index, [encode_rle(mask) for mask in masks]))

    def _annotated(self, image: AnnotatedImage) -> Sample:
        pixels = decode_image(image.path.read_bytes(), self.limits)
        if pixels.shape[:2] != (image.height, image.width):
            raise ValueError("the size of the upright image differs from its annotations")
        return Sample(
            image.index, pixels, self._sampled(image.index, [o.rle for o in image.objects])
        )

    def _sampled(self, index: int, objects: list[Rle]) -> tuple[tuple[int, Rle], ...]:
        keep = sample_indices(len(objects), self.effort.objects, [self.effort.seed, index])
        return tuple((i, objects[i]) for i in keep)


def load_samples(effort: Effort, limits: Limits) -> SampleSet:
    """The images that an effort specifies.

    Raises:
        EvaluationError: the annotations cannot be used.
    """
    if effort.images_dir is None or effort.annotations is None:
        return SampleSet(effort, limits, SCENES, None)
    path = Path(effort.annotations)
    dataset = load_dataset(Path(effort.images_dir), path, limit=effort.images, seed=effort.seed)
    return SampleSet(effort, limits, path.name, dataset)
