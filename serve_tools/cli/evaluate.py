"""``evaluate``: mean IoU on your own images with COCO annotations."""

from __future__ import annotations

import argparse
import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Any

from serve_app.cli import CommandError, log, positive
from serve_tools.cli.files import check_variants, natural, write_json
from serve_tools.evaluation.kinds import Multimask, PromptKind

if TYPE_CHECKING:
    from serve_app.core.ports import SegmentationService
    from serve_tools.evaluation.annotations import Dataset
    from serve_tools.evaluation.records import Evaluation, EvaluationPlan

EPILOG = """\
prompts, one for each annotated object:
  box    the tight box around the object's mask
  point  one click on the object's deepest point
  text   the category's name; its masks are paired with the objects of that name

exit status: 0 all images evaluated; 1 some failed (the report says which); 2 nothing evaluated
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.description = (
        "Mean IoU on your own images with COCO annotations: by prompt, variant and "
        "object size, with 95 % intervals and the differences between variants."
    )
    parser.epilog = EPILOG
    add = parser.add_argument
    add("--images", type=Path, required=True, metavar="DIR", help="folder of the images")
    add("--annotations", type=Path, required=True, metavar="FILE", help="COCO instances, JSON")
    add(
        "--prompt", action="append", type=PromptKind, choices=list(PromptKind),
        help="may be given several times (default: box and point)",
    )  # fmt: skip
    add(
        "--variant", action="append",
        help="may be given several times; the first is compared with each other (default: fast)",
    )  # fmt: skip
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--url", help="a running service; without it models load in this process")
    where.add_argument(
        "--config", type=Path, metavar="FILE",
        help="Serve config that says what the variants are (default: configs/local.yaml)",
    )  # fmt: skip
    add("--limit-images", type=positive, metavar="N", help="at most N images, chosen at random")
    add("--max-objects", type=positive, metavar="N", help="at most N objects of each image")
    add(
        "--absent-texts", type=natural, default=2, metavar="N",
        help="text: categories to query that an image does not show (default: %(default)s)",
    )  # fmt: skip
    add("--seed", type=natural, default=0, help="of samples and intervals (default: %(default)s)")
    add(
        "--multimask", type=Multimask, choices=list(Multimask),
        help="request three masks and count the best by its own score or by the truth "
        "(oracle), or request one (default: best-score for points, single for boxes)",
    )  # fmt: skip
    add("--json", type=Path, metavar="FILE", help="write all figures there as well")


def run(args: argparse.Namespace) -> int:
    """Evaluate and print the report; the exit status says whether it is complete."""
    from serve_app.core.errors import SamServeError
    from serve_tools.evaluation.annotations import EvaluationError, load_dataset
    from serve_tools.evaluation.records import EvaluationPlan
    from serve_tools.evaluation.report import markdown
    from serve_tools.evaluation.summary import summarise

    plan = EvaluationPlan(
        variants=tuple(dict.fromkeys(args.variant or ["fast"])),
        prompts=tuple(dict.fromkeys(args.prompt or [PromptKind.BOX, PromptKind.POINT])),
        multimask=args.multimask,
        max_objects=args.max_objects,
        absent_texts=args.absent_texts,
        seed=args.seed,
    )
    try:
        dataset = load_dataset(
            args.images, args.annotations, limit=args.limit_images, seed=args.seed
        )
        evaluation, models = asyncio.run(_evaluate(args, dataset, plan))
        if not evaluation.objects:
            first = evaluation.failures[0]
            raise EvaluationError(f"every image failed; {first.where}: {first.message}")
        summary = summarise(evaluation, models, in_process=args.url is None)
        print(markdown(summary), end="")
        if args.json is not None:
            write_json(args.json, summary)
    except (CommandError, EvaluationError, SamServeError) as exc:
        log(f"error: {exc}")
        return 2
    return 1 if evaluation.failures else 0


async def _evaluate(
    args: argparse.Namespace, dataset: Dataset, plan: EvaluationPlan
) -> tuple[Evaluation, dict[str, Any]]:
    if args.url is not None:
        from serve_app.client import HttpService

        async with HttpService(args.url) as service:
            if not await service.ready():
                raise CommandError("the service at this address is not ready, or none is there")
            return await _run_all(service, dataset, plan)
    return await _run_all(_in_process(args.config, plan), dataset, plan)


async def _run_all(
    service: SegmentationService, dataset: Dataset, plan: EvaluationPlan
) -> tuple[Evaluation, dict[str, Any]]:
    from tqdm import tqdm

    from serve_tools.evaluation.runner import evaluate

    with tqdm(total=len(dataset.images), unit="image", disable=None) as bar:
        evaluation = await evaluate(service, dataset, plan, bar.update)
    return evaluation, dict(await service.models())


def _in_process(config: Path | None, plan: EvaluationPlan) -> SegmentationService:
    # Imported here because it loads torch, which a remote service does not need.
    from serve_app.cli.configuration import load_settings
    from serve_app.local import build_local_service

    settings = load_settings(config)[0]
    check_variants(set(plan.variants) - {"auto"}, settings.variants)
    if PromptKind.TEXT not in plan.prompts:
        settings = settings.model_copy(update={"text": None})
    return build_local_service(settings, None if "auto" in plan.variants else plan.variants)
