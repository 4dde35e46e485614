"""The figures as Markdown tables."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from serve_tools.evaluation.kinds import Multimask
from serve_tools.markdown import markdown_table

_SHOWN = 5  # problems of one kind that are listed one by one


def markdown(summary: Mapping[str, Any]) -> str:
    """The report of a summary (`serve_tools.evaluation.summary.summarise`)."""
    data, plan = summary["dataset"], summary["plan"]
    models = ", ".join(f"{v} = {m}" for v, m in summary["models"].items())
    parts = [
        "# Evaluation",
        f"{data['objects']:,} objects in {data['images']:,} images; {models}.",
        f"Annotations {data['annotations_sha256'][:12]}; seed {plan['seed']}. Intervals: 95 %, "
        f"bootstrap over images ({plan['resamples']:,} resamples).",
    ]
    parts += _iou_tables(summary)
    parts += _text_table(summary)
    parts += _cascade_table(summary)
    parts += _score_table(summary)
    parts += _left_out(summary)
    return "\n\n".join(parts) + "\n"


def _iou_tables(summary: Mapping[str, Any]) -> list[str]:
    counted = {
        Multimask.BEST_SCORE: "the best of three masks by the model's own score",
        Multimask.ORACLE: "the best of three masks by the truth",
        Multimask.SINGLE: "the only mask requested",
    }
    used = [f"{p}: {counted[Multimask(m)]}" for p, m in summary["plan"]["multimask"].items()]
    if summary["text"]:
        used.append("text: masks and objects paired greedily, 0 for an object without a mask")
    rows = [
        [
            *(r[key] for key in ("prompt", "variant", "size")),
            *_counts(r["iou"]),
            *_interval(r["iou"]),
            _number(r["oracle_iou"]),
        ]
        for r in summary["iou"]
    ]
    head = ["prompt", "variant", "size", "objects", "images", "mean IoU", "95 %", "best of three"]
    parts = ["## Mean IoU", f"What counts: {'; '.join(used)}.", markdown_table(head, rows, left=3)]
    if summary["differences"]:
        rows = [
            [
                *(r["prompt"], f"{r['variant']} − {r['minus']}", r["size"]),
                *_counts(r["difference"]),
                *_interval(r["difference"], "+.3f"),
            ]
            for r in summary["differences"]
        ]
        head = ["prompt", "variants", "size", "objects", "images", "IoU difference", "95 %"]
        parts += ["## Differences on the same objects", markdown_table(head, rows, left=3)]
    return parts


def _text_table(summary: Mapping[str, Any]) -> list[str]:
    if not summary["text"]:
        return []
    keys = ("found_objects", "unmatched_masks", "missed_texts", "false_present")
    rows = [[r["variant"], *(_share(r[k]) for k in keys)] for r in summary["text"]]
    found = summary["plan"]["found_iou"]
    head = [
        "variant", f"objects found (IoU ≥ {found})", "masks that match nothing",
        "shown but missed", "absent but “present”",
    ]  # fmt: skip
    engines = ", ".join(summary["text_engines"])
    return [
        "## Text",
        f"Scored by {engines}; shares with their counts.",
        markdown_table(head, rows),
    ]


def _cascade_table(summary: Mapping[str, Any]) -> list[str]:
    if not summary["cascade"]:
        return []
    rows = [
        [
            *(row["prompt"], row["variant"]),
            f"{row['images_escalated']} of {row['images']}",
            f"{row['prompts_escalated']:,} of {row['prompts']:,}",
            f"{row['prompts_replaced']:,}",
        ]
        for row in summary["cascade"]
    ]
    head = ["prompt", "variant", "images escalated", "prompts escalated", "results replaced"]
    return ["## Cascade", markdown_table(head, rows, left=2)]


def _score_table(summary: Mapping[str, Any]) -> list[str]:
    scores = {(r["prompt"], r["variant"]): r for r in summary["calibration"]}
    rows = []
    for timing in summary["timing"]:
        key = (timing["prompt"], timing["variant"])
        score = scores.get(key, {})
        rows.append(
            [
                *key,
                *(_number(score.get(name)) for name in ("score", "iou")),
                *_interval(score.get("gap"), "+.3f"),
                *(_ms(timing[name]) for name in ("embed_ms_per_image", "decode_ms_per_prompt")),
            ]
        )
    head = ["prompt", "variant", "mean score", "mean IoU", "score − IoU", "95 %"]
    head += ["embed ms/image", "decode ms/prompt"]
    note = "The model's own score compared with the true IoU; times are medians."
    return ["## Scores and times", note, markdown_table(head, rows, left=2)]


def _left_out(summary: Mapping[str, Any]) -> list[str]:
    lines = []
    for entries in (summary["failures"], summary["problems"]):
        for kind, count in Counter(e["kind"] for e in entries).items():
            shown = [f"{e['where']}: {e['message']}" for e in entries if e["kind"] == kind][:_SHOWN]
            more = f"; and {count - _SHOWN} more" if count > _SHOWN else ""
            lines.append(f"- {kind} ({count}): {'; '.join(shown)}{more}")
    return ["## Excluded", "\n".join(lines)] if lines else []


def _number(estimate: Mapping[str, Any] | None, form: str = ".3f") -> str:
    return "–" if estimate is None else format(estimate["mean"], form)


def _interval(estimate: Mapping[str, Any] | None, form: str = ".3f") -> list[str]:
    if estimate is None or estimate["low"] is None:
        return [_number(estimate, form), "–"]
    low, high = (format(estimate[end], form) for end in ("low", "high"))
    return [_number(estimate, form), f"{low} to {high}"]


def _counts(estimate: Mapping[str, Any]) -> list[str]:
    return [f"{estimate['items']:,}", f"{estimate['images']:,}"]


def _share(estimate: Mapping[str, Any] | None) -> str:
    return "–" if estimate is None else f"{estimate['mean']:.1%} of {estimate['items']:,}"


def _ms(value: float | None) -> str:
    return "–" if value is None else f"{value:,.1f}"
