"""``demo``: sample photos through every kind of prompt, as a table and pictures."""

from __future__ import annotations

import argparse
import asyncio
import time
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import numpy as np
from PIL import Image

from serve_app.capabilities import Everything, Prompts, SegmentRequest, TextQuery
from serve_app.cli import CommandError, text_table
from serve_app.client import HttpService
from serve_app.core.errors import SamServeError
from serve_app.core.request import Task
from serve_app.core.types import Mask, Prompt, RgbArray, SegmentResult
from serve_app.masks.overlay import draw_overlay, side_by_side

_PHOTOS = ("cat", "astronaut", "coffee")
"""JPEG files in ``photos/`` beside this module; its README lists authors and licences."""


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


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument("url", help="base address of the service, such as http://127.0.0.1:8000")
    parser.add_argument("--api-key", metavar="KEY", help="if the service requires one")
    parser.add_argument(
        "--out", type=Path, default=Path("out"), metavar="DIR",
        help="folder of the pictures (default: %(default)s)",
    )  # fmt: skip


def run(args: argparse.Namespace) -> int:
    """Run the demonstration against a running service."""
    args.out.mkdir(parents=True, exist_ok=True)
    demonstrate(args.url.rstrip("/"), args.out, args.api_key)
    return 0


def demonstrate(url: str, out: Path, api_key: str | None = None) -> None:
    """Send all cases, print a table and how to call the service, and write pictures to ``out``.

    Raises:
        CommandError: the service is unreachable or rejected a request.
    """
    try:
        asyncio.run(_send_all(url, out, api_key))
    except SamServeError as exc:
        raise CommandError(f"the demonstration failed: {exc.message} ({exc.code})") from exc
    photo = out / "photo.jpg"
    print(
        f"pictures: {out}/summary.png and one for each row\n"
        f"\n{url}/docs\n"
        f"curl -F file=@{photo} -F 'box=[75, 75, 400, 290]' {url}/v1/segment\n"
        f"curl -F file=@{photo} -F text=cat {url}/v1/segment",
        flush=True,
    )


async def _send_all(url: str, out: Path, api_key: str | None) -> None:
    photos = {name: _photo(name) for name in _PHOTOS}
    Image.fromarray(photos["cat"]).save(out / "photo.jpg", quality=92)
    rows = []
    pictures = []
    async with HttpService(url, api_key=api_key) as service:
        for case in demo_cases():
            pixels = photos[case.photo]
            started = time.perf_counter()
            result = await service.segment(SegmentRequest(image=pixels, task=case.task))
            elapsed = f"{(time.perf_counter() - started) * 1e3:.0f}"
            masks = str(sum(len(r.masks) for r in result.results))
            served_by = f"{result.variant} ({result.model})", result.cache.value
            rows.append((case.photo, case.label, masks, _score(result), *served_by, elapsed))
            prompts = case.task.prompts if isinstance(case.task, Prompts) else ()
            label = f"{case.label}  {_score(result)}"
            picture = draw_overlay(pixels, _shown(result), label, prompts)
            picture.save(out / f"{case.name}.png")
            if case.in_summary:
                pictures.append(picture)
    side_by_side(pictures, 320).save(out / "summary.png", optimize=True)
    print(text_table(("photo", "prompt", "masks", "score", "variant", "cache", "ms"), rows))


_PRESENCE = {True: "", False: " not present", None: " unknown"}


def _photo(name: str) -> RgbArray:
    with resources.files("serve_app.cli").joinpath("photos", f"{name}.jpg").open("rb") as file:
        return np.asarray(Image.open(file).convert("RGB"))


def _shown(result: SegmentResult) -> list[Mask]:
    """The best-scored of the three masks of a prompt; all masks of text and everything."""
    if result.text_engine or len(result.results[0].masks) > 3:
        return [mask for r in result.results for mask in r.masks]
    return [max(r.masks, key=lambda m: m.score) for r in result.results if r.masks]


def _score(result: SegmentResult) -> str:
    if result.text_engine:
        return ", ".join(f"{r.best_score or 0:.2f}" + _PRESENCE[r.present] for r in result.results)
    scores = [mask.score for mask in _shown(result)]
    return f"{np.mean(scores):.2f}" if scores else "-"
