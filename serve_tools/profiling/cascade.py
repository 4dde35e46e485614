"""The cascade's rules from the records of a measurement, and their report."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from serve_app.core.measurements import Escalation, Point, PromptType, VariantMeasurements, pass_ms
from serve_tools.evaluation.cascade import Pair, fit_escalation
from serve_tools.markdown import markdown_table
from serve_tools.profiling.quality import QualityRecord

_SHOWN = (0.1, 0.2, 0.3, 0.4, 0.6, 1.0)


def fit_rules(
    records: Iterable[QualityRecord], first: str, second: str, seed: int
) -> dict[PromptType, Escalation]:
    """Rules by form of prompt, for forms with enough objects measured on both variants."""
    found: dict[PromptType, dict[tuple[int, int], dict[str, QualityRecord]]] = {}
    for record in records:
        if record.variant in (first, second) and record.features:
            of_object = found.setdefault(record.form, {})
            of_object.setdefault((record.image, record.object), {})[record.variant] = record
    rules = {}
    for form, objects in found.items():
        pairs = [
            Pair(
                form=form,
                image=image,
                first=both[first].features,
                first_iou=both[first].iou,
                second=both[second].features,
                second_iou=both[second].iou,
            )
            for (image, _), both in sorted(objects.items())
            if len(both) == 2
        ]
        rule = fit_escalation(pairs, seed)
        if rule is not None:
            rules[form] = rule
    return rules


def cascade_table(
    first: str,
    second: str,
    rules: Mapping[PromptType, Escalation],
    entries: Mapping[str, VariantMeasurements],
) -> str:
    """Gain and cost of the cascade at several shares of escalation, as Markdown.

    Cost is encoder time an image; ``of the extra cost`` is relative to encoding every image by
    the second variant instead of by the first.
    """
    head = ["prompts", "request holds", "escalated", f"{first} alone", f"{second} alone"]
    head += ["cascade", "of the gain", "encoder ms an image", "of the extra cost"]
    once, twice = (pass_ms(entries[name].profile.encode_ms, 1) for name in (first, second))
    rows = [
        _row(form, holds, rule, point, once, twice)
        for form, rule in sorted(rules.items())
        for holds, curve in (("an image's prompts", rule.curve), ("one prompt", rule.single))
        for point in _shown(curve)
    ]
    return (
        f"## Cascade {first} > {second}\n\nCross-validated over images.  Prompts of a form for "
        "which the second variant alone is no better are never escalated.\n\n"
        + markdown_table(head, rows, left=2)
    )


def _shown(curve: Sequence[Point]) -> list[Point]:
    """The points nearest below the shares that are shown."""
    shown = []
    for share in _SHOWN:
        below = [p for p in curve if p.share <= share + 0.025]
        if below and below[-1] not in shown:
            shown.append(below[-1])
    return shown


def _row(
    form: PromptType, holds: str, rule: Escalation, point: Point, once: float, twice: float
) -> list[str]:
    gain = rule.second_iou - rule.first_iou
    of_gain = f"{point.gain / gain:.0%}" if gain > 0 else "no gain"
    extra = twice - once
    of_cost = f"{point.share * twice / extra:.0%}" if extra > 0 else "none"
    return [
        form,
        holds,
        f"{point.share:.0%}",
        f"{rule.first_iou:.4f}",
        f"{rule.second_iou:.4f}",
        f"{rule.first_iou + point.gain:.4f}",
        of_gain,
        f"{once + point.share * twice:.0f}",
        of_cost,
    ]
