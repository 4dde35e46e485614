"""Kinds of prompts, and ways to count their masks."""

from __future__ import annotations

from enum import StrEnum


class PromptKind(StrEnum):
    """The kind of prompt for each object."""

    BOX = "box"
    POINT = "point"
    TEXT = "text"


class Multimask(StrEnum):
    """How many masks a prompt requests, and which of them counts."""

    BEST_SCORE = "best-score"
    ORACLE = "oracle"
    SINGLE = "single"


DEFAULT_MULTIMASK = {
    PromptKind.BOX: Multimask.SINGLE,
    PromptKind.POINT: Multimask.BEST_SCORE,
}
"""SAM's authors: three masks for an ambiguous prompt (one click), one mask for a box."""
