"""Prompts and points of a whole batch, counted before its items are checked one by one."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from serve_app.core.errors import TooManyPrompts
from serve_app.core.limits import Limits


def check_totals(items: Iterable[Any], limits: Limits) -> int:
    """How many prompts and texts the items of a batch hold together.

    The items are JSON that nobody has checked yet: what is not of the right form counts nothing,
    and is told as that item's fault.

    Raises:
        TooManyPrompts: more prompts or points than one call may hold.
    """
    prompts = points = 0
    for item in items:
        if not isinstance(item, dict):
            continue
        asked = item.get("prompts")
        if isinstance(asked, list):
            prompts += len(asked)
            points += sum(_points(one) for one in asked)
        else:
            texts = item.get("text")
            prompts += len(texts) if isinstance(texts, list) else 1
            points += _points(item)
    for count, most, what in (
        (prompts, limits.max_total_prompts, "prompts"),
        (points, limits.max_total_points, "points"),
    ):
        if count > most:
            raise TooManyPrompts(f"{count} {what} in one call, but the limit is {most}")
    return prompts


def _points(prompt: Any) -> int:
    coords = prompt.get("point_coords") if isinstance(prompt, dict) else None
    return len(coords) if isinstance(coords, list) else 0
