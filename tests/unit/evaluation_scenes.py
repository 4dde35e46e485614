"""Images of known objects, and a service that knows them, for the tests of the evaluation."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from serve_app.capabilities import Prompts, SegmentRequest, TextQuery
from serve_app.core.errors import UnknownImage
from serve_app.core.geometry import tight_box
from serve_app.core.request import AUTO, EmbedRequest
from serve_app.core.rle import encode_rle
from serve_app.core.types import (
    BoolArray,
    CacheTier,
    EmbedResult,
    Prompt,
    PromptResult,
    RgbArray,
    SegmentResult,
)
from serve_tools.evaluation.annotations import (
    Dataset,
    load_dataset,
)
from serve_tools.evaluation.kinds import PromptKind
from serve_tools.evaluation.records import EvaluationPlan

from ..fakes.masks import mask_of
from ..fakes.service import FakeService

SIDE = 120


def rectangle(x0: int, y0: int, x1: int, y1: int) -> BoolArray:
    mask = np.zeros((SIDE, SIDE), np.bool_)
    mask[y0:y1, x0:x1] = True
    return mask


def left_half(mask: BoolArray) -> BoolArray:
    x0, _, x1, _ = tight_box(mask)
    half = mask.copy()
    half[:, (x0 + x1) // 2 :] = False
    return half


def coco_rle(mask: BoolArray) -> dict[str, Any]:
    rle = encode_rle(mask)
    return {"size": list(rle.size), "counts": rle.counts.decode()}


Answer = Callable[[str, BoolArray], Sequence[tuple[BoolArray, float]]]


class SceneService(FakeService):
    """Knows the objects of each file and answers what it is told to make of them.

    An image file here holds its own name; it is known by id once it was sent.
    """

    def __init__(
        self,
        objects: Mapping[str, Sequence[BoolArray]],
        answer: Answer = lambda variant, mask: [(mask, 0.9)],
        text: Callable[[str, str], PromptResult] | None = None,
    ) -> None:
        super().__init__()
        self.objects = objects
        self.answer = answer
        self.text = text
        self.known: set[str] = set()
        self.fails: dict[str, Exception] = {}
        self.size = (SIDE, SIDE)
        self.forgets = False

    def respond(self, request: SegmentRequest) -> SegmentResult:
        if isinstance(request.image, str):
            name = request.image.replace("-", ".")
            if self.forgets or name not in self.known:
                raise UnknownImage("not known")
        else:
            name = bytes(request.image).decode()
        miss = name not in self.known
        self.known.add(name)
        if name in self.fails:
            raise self.fails[name]
        if isinstance(request.task, TextQuery):
            assert self.text is not None
            results = [self.text(name, text) for text in request.task.text]
        else:
            assert isinstance(request.task, Prompts)
            results = [self._prompted(name, p, request.variant) for p in request.task.prompts]
        return SegmentResult(
            image_id=name.replace(".", "-"),  # a file's name is no image_id
            width=self.size[0],
            height=self.size[1],
            results=tuple(results),
            variant=request.variant,
            model=f"model-{request.variant}",
            reason="asked",
            cache=CacheTier.MISS if miss else CacheTier.MEMORY,
            timings_ms={"embed": 100.0 if miss else 0.0, "decode_masks": 10.0 * len(results)},
            text_engine="labels" if isinstance(request.task, TextQuery) else None,
        )

    def _prompted(self, name: str, prompt: Prompt, variant: str) -> PromptResult:
        for mask in self.objects[name]:
            if prompt.box is not None:
                meant = tuple(prompt.box) == tight_box(mask)
            else:
                assert prompt.point_coords is not None
                x, y = prompt.point_coords[0]
                meant = bool(mask[int(y), int(x)])
            if meant:
                answers = self.answer(variant, mask)
                keep = answers if prompt.multimask_output else answers[:1]
                return PromptResult(masks=tuple(mask_of(m, s) for m, s in keep))
        raise AssertionError("a prompt for no object")

    async def embed(
        self, image: EmbedRequest | bytes | RgbArray | str, variant: str = AUTO
    ) -> EmbedResult:
        raise AssertionError("the evaluation embeds nothing by itself")

    async def models(self) -> Mapping[str, Any]:
        return {"variants": {"fast": {"weights_hash": "abc"}, "other": {}}}


def write_dataset(
    folder: Path,
    objects: Mapping[str, Sequence[BoolArray]],
    categories: Mapping[str, Sequence[str]] | None = None,
    names: Sequence[str] = ("thing",),
    **changes: Any,
) -> Path:
    """Files and annotations; ``categories`` gives the name of each object of each file."""
    data: dict[str, Any] = {
        "images": [],
        "annotations": [],
        "categories": [{"id": i, "name": n} for i, n in enumerate(names)],
    }
    for index, (file_name, masks) in enumerate(objects.items()):
        (folder / file_name).write_bytes(file_name.encode())
        data["images"].append({"id": index, "file_name": file_name, "width": SIDE, "height": SIDE})
        for place, mask in enumerate(masks):
            name = categories[file_name][place] if categories else names[0]
            data["annotations"].append(
                {
                    "id": len(data["annotations"]),
                    "image_id": index,
                    "category_id": list(names).index(name),
                    "segmentation": coco_rle(mask),
                    "iscrowd": 0,
                }
            )
    for key, extra in changes.items():
        data[key] += extra
    path = folder / "instances.json"
    path.write_text(json.dumps(data))
    return path


def load(folder: Path, objects: Mapping[str, Sequence[BoolArray]], **options: Any) -> Dataset:
    return load_dataset(folder, write_dataset(folder, objects, **options))


def plan(
    *prompts: PromptKind, variants: tuple[str, ...] = ("fast",), **options: Any
) -> EvaluationPlan:
    return EvaluationPlan(variants=variants, prompts=prompts or (PromptKind.BOX,), **options)


SCENE = {
    "a.png": [rectangle(2, 2, 22, 22), rectangle(40, 40, 80, 80)],
    "b.png": [rectangle(5, 5, 105, 115)],
}
