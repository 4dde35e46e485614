"""The bounds on one task, for HTTP and Python callers alike."""

from __future__ import annotations

from serve_app.core.errors import InvalidRequest, TooManyPrompts
from serve_app.core.limits import Limits
from serve_app.core.types import Everything, Task, TextQuery


def check_limits(task: Task, limits: Limits) -> None:
    """Refuse a task beyond the limits.

    Raises:
        TooManyPrompts: too many prompts, points or texts.
        InvalidRequest: no prompt, a text too long, too fine a grid, too many crop layers.
    """
    if isinstance(task, Everything):
        _at_most(task.points_per_side, limits.max_points_per_side, "points_per_side")
        _at_most(task.crop_n_layers, limits.max_crop_layers, "crop_n_layers")
    elif isinstance(task, TextQuery):
        _count(len(task.texts), limits.max_texts, "texts", "text")
        _at_most(task.points_per_side, limits.max_points_per_side, "points_per_side")
        if max(len(t) for t in task.texts) > limits.max_text_chars:
            raise InvalidRequest(
                f"a text may have at most {limits.max_text_chars} characters", "text"
            )
    else:
        if not task:
            raise InvalidRequest("prompts must hold at least one prompt", "prompts")
        _count(len(task), limits.max_prompts, "prompts", "prompts")
        total = 0
        for i, prompt in enumerate(task):
            points = 0 if prompt.point_coords is None else len(prompt.point_coords)
            _count(points, limits.max_points, "points", f"prompts[{i}].point_coords")
            total += points
        _count(total, limits.max_total_points, "points", "prompts")


def _count(count: int, limit: int, what: str, field: str) -> None:
    if count > limit:
        raise TooManyPrompts(f"{count} {what}, but the limit is {limit}", field)


def _at_most(value: int, limit: int, field: str) -> None:
    if value > limit:
        raise InvalidRequest(f"{field} may be at most {limit}", field)
