"""The plan of an evaluation, and its results."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from serve_tools.evaluation.annotations import Dataset, Problem
from serve_tools.evaluation.kinds import DEFAULT_MULTIMASK, Multimask, PromptKind

FOUND_IOU = 0.5
"""A mask with less overlap than this has not found the object (COCO's loosest)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationPlan:
    """What to request.

    Attributes:
        multimask: for box and point; None: as `DEFAULT_MULTIMASK` says for each.
        max_objects: maximum number of objects prompted in one image, chosen with ``seed`` (text
            always looks for all of them).
        absent_texts: number of categories absent from an image that text queries as well, chosen
            with ``seed``.
        chunk: prompts in one request.
    """

    variants: tuple[str, ...]
    prompts: tuple[PromptKind, ...]
    multimask: Multimask | None = None
    max_objects: int | None = None
    absent_texts: int = 2
    chunk: int = 64
    seed: int = 0

    def multimask_of(self, kind: PromptKind) -> Multimask:
        return self.multimask or DEFAULT_MULTIMASK[kind]


@dataclass(frozen=True, slots=True, kw_only=True)
class ObjectScore:
    """One object under one prompt and variant.

    Attributes:
        iou: of the mask that counts (`Multimask`); 0 if there was none.
        oracle_iou: of the mask that fits best, when there were several to choose from.
        score: the model's own estimate of ``iou`` (not for text).
    """

    variant: str
    prompt: PromptKind
    image: int
    annotation_id: int
    area: int
    iou: float
    oracle_iou: float | None = None
    score: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TextScore:
    """One text query on one image: each of its masks is found, unmatched or (crowd) neither."""

    variant: str
    image: int
    text: str
    in_image: bool
    said_present: bool
    found: int
    unmatched: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """One request's time by stage, in milliseconds, and what its cascade did.

    Attributes:
        escalated: prompts that were escalated to a second variant.
        replaced: prompts with masks of the second variant in the result.
    """

    variant: str
    prompt: PromptKind
    prompts: int
    cached: bool
    stages: Mapping[str, float]
    image: int = 0
    escalated: int = 0
    replaced: int = 0


@dataclass(slots=True)
class Evaluation:
    """All results; `serve_tools.evaluation.summary` aggregates them."""

    dataset: Dataset
    plan: EvaluationPlan
    objects: list[ObjectScore] = field(default_factory=list)
    texts: list[TextScore] = field(default_factory=list)
    timings: list[Timing] = field(default_factory=list)
    failures: list[Problem] = field(default_factory=list)
    models: dict[str, str] = field(default_factory=dict)
    text_engines: set[str] = field(default_factory=set)
