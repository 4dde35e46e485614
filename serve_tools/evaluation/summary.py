"""All figures of an evaluation, as one structure for JSON and for the report."""

from __future__ import annotations

import platform
import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from importlib import metadata
from typing import Any

from serve_tools.evaluation.kinds import PromptKind
from serve_tools.evaluation.metrics import RESAMPLES, SIZES, Estimate, cluster_mean, size_of
from serve_tools.evaluation.records import FOUND_IOU, Evaluation, ObjectScore

FORMAT = 1
_PACKAGES = ("serve-anything", "numpy", "pycocotools", "opencv-python-headless")
_COMPUTE_PACKAGES = ("torch", "segment-anything", "timm", "onnxruntime", "open-clip-torch")


def summarise(
    evaluation: Evaluation, models: Mapping[str, Any] | None = None, *, in_process: bool
) -> dict[str, Any]:
    """All figures, ready for JSON.

    Everything but ``timing`` depends only on the data, the weights and the listed versions, not on
    the machine.

    Args:
        models: the service's `SegmentationService.models`, kept for its weight hashes.
        in_process: whether the models run in this process, so that its package versions apply.
    """
    plan, dataset = evaluation.plan, evaluation.dataset
    used = {(o.image, o.annotation_id) for o in evaluation.objects}
    return {
        "format": FORMAT,
        "dataset": {
            "annotations_sha256": dataset.sha256,
            "images": len({image for image, _ in used}),
            "objects": len(used),
            "categories": len(dataset.categories),
            "left_out": dict(Counter(p.kind for p in dataset.problems)),
        },
        "plan": {
            "variants": list(plan.variants),
            "prompts": [str(p) for p in plan.prompts],
            "multimask": {
                str(p): str(plan.multimask_of(p)) for p in plan.prompts if p is not PromptKind.TEXT
            },
            "max_objects": plan.max_objects,
            "absent_texts": plan.absent_texts,
            "seed": plan.seed,
            "resamples": RESAMPLES,
            "found_iou": FOUND_IOU,
        },
        "versions": versions_of(_PACKAGES + (_COMPUTE_PACKAGES if in_process else ())),
        "models": dict(evaluation.models),
        "text_engines": sorted(evaluation.text_engines),
        "service": _of_variants(models or {}, plan.variants),
        "iou": _iou(evaluation),
        "differences": _differences(evaluation),
        "calibration": _calibration(evaluation),
        "text": _text(evaluation),
        "cascade": _cascade(evaluation),
        "timing": _timing(evaluation),
        "failures": [asdict(f) for f in evaluation.failures],
        "problems": [asdict(p) for p in dataset.problems],
    }


def versions_of(packages: Iterable[str]) -> dict[str, str]:
    """Of Python, and of those packages that are installed."""
    versions = {"python": platform.python_version()}
    for package in packages:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return versions


def _of_variants(models: Mapping[str, Any], variants: Sequence[str]) -> dict[str, Any]:
    """The service's description of the evaluated variants and of its text engine."""
    described = models.get("variants")
    entries = described.items() if isinstance(described, Mapping) else ()
    return {
        "variants": {name: entry for name, entry in entries if name in variants},
        "text": models.get("text"),
    }


def _rows(evaluation: Evaluation, kind: PromptKind, variant: str) -> list[ObjectScore]:
    return [o for o in evaluation.objects if o.prompt is kind and o.variant == variant]


def _groups(evaluation: Evaluation) -> Iterable[tuple[PromptKind, str, list[ObjectScore]]]:
    for kind in evaluation.plan.prompts:
        for variant in evaluation.plan.variants:
            if rows := _rows(evaluation, kind, variant):
                yield kind, variant, rows


def _of_size(rows: Sequence[ObjectScore], size: str) -> list[ObjectScore]:
    return [r for r in rows if size in ("all", size_of(r.area))]


def _mean(pairs: Iterable[tuple[float, int]], seed: int) -> dict[str, Any] | None:
    values = list(pairs)
    estimate = cluster_mean([v for v, _ in values], [i for _, i in values], seed=seed)
    return _rounded(estimate) if estimate else None


def _rounded(estimate: Estimate) -> dict[str, Any]:
    rounded = {
        key: None if value is None else round(value, 6)
        for key, value in (("mean", estimate.mean), ("low", estimate.low), ("high", estimate.high))
    }
    return {**rounded, "items": estimate.items, "images": estimate.images}


def _iou(evaluation: Evaluation) -> list[dict[str, Any]]:
    seed, out = evaluation.plan.seed, []
    for kind, variant, rows in _groups(evaluation):
        for size in SIZES:
            if some := _of_size(rows, size):
                oracle = _mean(
                    ((r.oracle_iou, r.image) for r in some if r.oracle_iou is not None), seed
                )
                out.append(
                    {
                        "prompt": str(kind),
                        "variant": variant,
                        "size": size,
                        "iou": _mean(((r.iou, r.image) for r in some), seed),
                        "oracle_iou": oracle,
                    }
                )
    return out


def _differences(evaluation: Evaluation) -> list[dict[str, Any]]:
    """Each further variant minus the first, object by object."""
    first, *others = evaluation.plan.variants
    out = []
    for kind in evaluation.plan.prompts:
        base = {(r.image, r.annotation_id): r.iou for r in _rows(evaluation, kind, first)}
        for other in others:
            rows = _rows(evaluation, kind, other)
            for size in SIZES:
                difference = _mean(
                    (
                        (r.iou - base[r.image, r.annotation_id], r.image)
                        for r in _of_size(rows, size)
                    ),
                    evaluation.plan.seed,
                )
                if difference:
                    out.append(
                        {
                            "prompt": str(kind),
                            "variant": other,
                            "minus": first,
                            "size": size,
                            "difference": difference,
                        }
                    )
    return out


def _calibration(evaluation: Evaluation) -> list[dict[str, Any]]:
    """The model's own score against the IoU it estimates."""
    seed, out = evaluation.plan.seed, []
    for kind, variant, rows in _groups(evaluation):
        scored = [(r.score, r.iou, r.image) for r in rows if r.score is not None]
        if scored:
            out.append(
                {
                    "prompt": str(kind),
                    "variant": variant,
                    "score": _mean(((s, i) for s, _, i in scored), seed),
                    "iou": _mean(((u, i) for _, u, i in scored), seed),
                    "gap": _mean(((s - u, i) for s, u, i in scored), seed),
                }
            )
    return out


def _text(evaluation: Evaluation) -> list[dict[str, Any]]:
    seed, out = evaluation.plan.seed, []
    for variant in evaluation.plan.variants:
        queries = [a for a in evaluation.texts if a.variant == variant]
        if not queries:
            continue
        shown = [a for a in queries if a.in_image]
        masks = [(flag, a.image) for a in shown for flag in [0.0] * a.found + [1.0] * a.unmatched]
        found = [
            (float(o.iou >= FOUND_IOU), o.image)
            for o in _rows(evaluation, PromptKind.TEXT, variant)
        ]
        out.append(
            {
                "variant": variant,
                "found_objects": _mean(found, seed),
                "unmatched_masks": _mean(masks, seed),
                "missed_texts": _mean(((1.0 - a.said_present, a.image) for a in shown), seed),
                "false_present": _mean(
                    ((float(a.said_present), a.image) for a in queries if not a.in_image), seed
                ),
            }
        )
    return out


def _cascade(evaluation: Evaluation) -> list[dict[str, Any]]:
    """How much was escalated; nothing where no cascade was active."""
    out = []
    for kind in evaluation.plan.prompts:
        for variant in evaluation.plan.variants:
            timings = [t for t in evaluation.timings if t.variant == variant and t.prompt is kind]
            if any(t.escalated for t in timings):
                images = {t.image for t in timings}
                out.append(
                    {
                        "prompt": str(kind),
                        "variant": variant,
                        "images": len(images),
                        "images_escalated": len({t.image for t in timings if t.escalated}),
                        "prompts": sum(t.prompts for t in timings),
                        "prompts_escalated": sum(t.escalated for t in timings),
                        "prompts_replaced": sum(t.replaced for t in timings),
                    }
                )
    return out


def _timing(evaluation: Evaluation) -> list[dict[str, Any]]:
    out = []
    for kind in evaluation.plan.prompts:
        for variant in evaluation.plan.variants:
            of_variant = [t for t in evaluation.timings if t.variant == variant]
            timings = [t for t in of_variant if t.prompt is kind]
            embeds = [t.stages["embed"] for t in of_variant if not t.cached and "embed" in t.stages]
            decodes = [
                t.stages["decode_masks"] / t.prompts for t in timings if "decode_masks" in t.stages
            ]
            stages = sorted({stage for t in timings for stage in t.stages})
            if timings:
                out.append(
                    {
                        "prompt": str(kind),
                        "variant": variant,
                        "embed_ms_per_image": _median(embeds),
                        "decode_ms_per_prompt": _median(decodes),
                        "stages_ms_per_request": {
                            s: _median(t.stages[s] for t in timings if s in t.stages)
                            for s in stages
                        },
                    }
                )
    return out


def _median(values: Iterable[float]) -> float | None:
    listed = list(values)
    return round(statistics.median(listed), 3) if listed else None
