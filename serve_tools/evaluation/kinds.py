"""The ways to prompt, and to count what comes back."""

from __future__ import annotations

from enum import StrEnum


class PromptKind(StrEnum):
    """What the model is told of each object."""

    BOX = "box"
    POINT = "point"
    TEXT = "text"


class Multimask(StrEnum):
    """How many masks a prompt asks for, and which of them counts."""

    BEST_SCORE = "best-score"
    ORACLE = "oracle"
    SINGLE = "single"


DEFAULT_MULTIMASK = {
    PromptKind.BOX: Multimask.SINGLE,
    PromptKind.POINT: Multimask.BEST_SCORE,
}
"""SAM's authors: three masks for an ambiguous prompt (one click), one mask for a box."""
