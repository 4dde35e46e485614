"""The demonstration: sample photos through every kind of prompt, as a table and pictures."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import numpy as np
from PIL import Image

from serve_app.capabilities import Everything, Prompts, SegmentRequest, TextQuery
from serve_app.client import HttpService
from serve_app.core.request import Task
from serve_app.core.types import Mask, Prompt, SegmentResult
from serve_app.masks.overlay import draw_overlay, side_by_side

# Photos that come with scikit-image, in its package.
_PHOTOS = {"cat": "chelsea.png", "astronaut": "astronaut.png", "coffee": "coffee.png"}


@dataclass(frozen=True, slots=True)
class Case:
    """One request of the demonstration."""

    name: str
    photo: str
    label: str
    task: Task
    in_summary: bool = False


def demo_cases() -> list[Case]:
    """A point, the same point again, a box, box with point, texts and everything."""
    eye = Prompt(point_coords=np.array([[172, 117]]), point_labels=np.array([1]))
    face = Prompt(box=np.array([170, 65, 285, 215]), multimask_output=False)
    suit = Prompt(
        box=np.array([60, 210, 460, 510]),
        point_coords=np.array([[250, 400], [350, 60]]),
        point_labels=np.array([1, 0]),
        multimask_output=False,
    )
    # 256 points and milder thresholds than ViT-H's find more objects with the small models.
    grid = Everything(points_per_side=16, pred_iou_thresh=0.8, stability_score_thresh=0.9)
    return [
        Case("1-point", "cat", "point (172, 117)", Prompts(prompts=(eye,)), in_summary=True),
        Case("2-point-again", "cat", "the same point again", Prompts(prompts=(eye,))),
        Case("3-box", "astronaut", "box", Prompts(prompts=(face,)), in_summary=True),
        Case("4-box-and-points", "astronaut", "box and two points", Prompts(prompts=(suit,))),
        Case("5-text", "cat", "text 'cat'", TextQuery(text=("cat",)), in_summary=True),
        Case("6-text", "coffee", "text 'cup', 'spoon'", TextQuery(text=("cup", "spoon"))),
        Case("7-text-absent", "cat", "text 'giraffe'", TextQuery(text=("giraffe",))),
        Case("8-everything", "coffee", "everything", grid, in_summary=True),
    ]


async def run_demo(url: str, out: Path) -> None:
    """Send the cases to a running service, print the table, write the pictures.

    Raises:
        SamServeError: what the service answered.
    """
    photos = {name: _photo(file) for name, file in _PHOTOS.items()}
    Image.fromarray(photos["cat"]).save(out / "photo.jpg", quality=92)
    rows = [("photo", "prompt", "masks", "score", "variant", "cache", "ms")]
    pictures = []
    async with HttpService(url) as service:
        for case in demo_cases():
            pixels = photos[case.photo]
            started = time.perf_counter()
            result = await service.segment(SegmentRequest(image=pixels, task=case.task))
            elapsed = (time.perf_counter() - started) * 1e3
            masks = _shown(result)
            rows.append(
                (
                    case.photo,
                    case.label,
                    str(sum(len(r.masks) for r in result.results)),
                    _score(result),
                    f"{result.variant} ({result.model})",
                    result.cache.value,
                    f"{elapsed:.0f}",
                )
            )
            prompts = case.task.prompts if isinstance(case.task, Prompts) else ()
            picture = draw_overlay(pixels, masks, f"{case.label}  {_score(result)}", prompts)
            picture.save(out / f"{case.name}.png")
            if case.in_summary:
                pictures.append(picture)
    side_by_side(pictures, 320).save(out / "summary.png", optimize=True)
    print(_table(rows))


def _photo(name: str) -> np.ndarray:
    with resources.files("skimage.data").joinpath(name).open("rb") as file:
        return np.asarray(Image.open(file).convert("RGB"))


def _shown(result: SegmentResult) -> list[Mask]:
    """Of a prompt's three masks the one with the best score; of everything else, all."""
    if result.text_engine or len(result.results[0].masks) > 3:
        return [mask for r in result.results for mask in r.masks]
    return [max(r.masks, key=lambda m: m.score) for r in result.results if r.masks]


def _score(result: SegmentResult) -> str:
    if result.text_engine:
        return ", ".join(
            f"{r.best_score:.2f}" + ("" if r.present else " not present") for r in result.results
        )
    scores = [mask.score for mask in _shown(result)]
    return f"{np.mean(scores):.2f}" if scores else "-"


def _table(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)) for row in rows]
    lines.insert(1, "  ".join("-" * w for w in widths))
    return "\n".join(line.rstrip() for line in lines)
