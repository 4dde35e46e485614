"""Section d: "everything" against Meta's ``SamAutomaticMaskGenerator``, time and recall."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import islice

from serve_app.capabilities import Everything, EverythingMode
from serve_app.core.settings import GraphSettings
from serve_tools.bench.rows import Row
from serve_tools.evaluation.annotations import Dataset
from serve_tools.evaluation.everything import (
    EverythingScore,
    Generator,
    KnownImage,
    annotated_images,
    drawn_images,
    metas_generator,
    score_everything,
    service_generator,
)

META = "SamAutomaticMaskGenerator"


def run(
    settings: GraphSettings,
    variant: str,
    dataset: Dataset | None,
    *,
    images: int,
    points_per_side: int = 32,
) -> tuple[list[Row], list[str]]:
    """Both modes of ours and Meta's generator in turn on each image; rows and notes.

    Args:
        dataset: annotated images; None: synthetic ones with exact masks.
        images: at most this many; Meta's generator takes minutes for each on a CPU.
    """
    fast, exact = (
        Everything(points_per_side=points_per_side, mode=mode)
        for mode in (EverythingMode.FAST, EverythingMode.EXACT)
    )
    router = settings.router.among([variant])
    alone = settings.model_copy(
        update={"variants": {variant: settings.variants[variant]}, "router": router, "text": None}
    )
    generators: dict[str, Generator] = {
        "ours, fast": service_generator(alone, fast),
        "ours, exact": service_generator(alone, exact),
        META: metas_generator(settings, variant, exact),
    }
    found: Iterable[KnownImage] = (
        drawn_images(range((images + 1) // 2))
        if dataset is None
        else annotated_images(dataset, settings.limits)
    )
    return score(generators, list(islice(found, images)), points_per_side)


def score(
    generators: Mapping[str, Generator], images: list[KnownImage], points_per_side: int
) -> tuple[list[Row], list[str]]:
    """Seconds an image, one round each, and the share of objects that were found."""
    scores = score_everything(generators, images)
    rows = [_seconds(name, found, points_per_side) for name, found in scores.items()]
    rows += [_recall(name, found) for name, found in scores.items()]
    objects = next(iter(scores.values())).objects
    return rows, [f"{len(images)} images with {objects} objects; a round is an image."]


def _seconds(name: str, found: EverythingScore, points_per_side: int) -> Row:
    return Row(
        case=f"{points_per_side**2:,} points",
        system=name,
        ours=name != META,
        unit="s an image",
        rounds=found.seconds,
        details={"masks": found.masks, "mean_iou": found.mean_iou},
    )


def _recall(name: str, found: EverythingScore) -> Row:
    return Row(
        case="recall at IoU 0.5",
        system=name,
        ours=name != META,
        unit="of the objects",
        higher_is_better=True,
        rounds=(found.recall,),
        dominates=f"{found.masks} masks, mean IoU {found.mean_iou:.2f}",
    )
