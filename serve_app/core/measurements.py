"""Measurements: what each variant costs and how good it is, measured on one host.

``python -m serve_app measure`` writes the file; the graph's builder reads it.  Router, scaling
policy and simulator use `Profile`, the few numbers of a variant that decisions need.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import inf, isfinite
from typing import Literal

from pydantic import Field, model_validator

from serve_app.core.settings import VARIANT_NAME, EngineName, Strict

QualityKind = Literal["box", "point"]
"""The kind of prompt with which a mean IoU was measured."""


class Figure(Strict):
    """A measured value with its 95 % interval, if there were repetitions."""

    value: float = Field(allow_inf_nan=False)
    low: float | None = Field(None, allow_inf_nan=False)
    high: float | None = Field(None, allow_inf_nan=False)

    @model_validator(mode="after")
    def _ordered(self) -> Figure:
        low = self.value if self.low is None else self.low
        high = self.value if self.high is None else self.high
        if not low <= self.value <= high:
            raise ValueError("low <= value <= high must hold")
        return self


class Duration(Figure):
    """A positive time; the unit is in the field's name."""

    value: float = Field(gt=0, le=1e9, allow_inf_nan=False)


class Share(Figure):
    """A number between -1 (cosines) or 0 (IoU) and 1."""

    value: float = Field(ge=-1, le=1, allow_inf_nan=False)


class Host(Strict):
    """The hardware that times depend on.  Hosts with equal fields count as one."""

    cpu: str = Field(description="the processor's model name")
    cores: int = Field(ge=1, description="logical cores that this process may use")
    gpus: tuple[str, ...] = Field((), description="names of the GPUs, in order")


class Agreement(Strict):
    """Parity of a variant with its reference, on the same images and prompts."""

    reference: str = Field(description="the variant or library it is compared with")
    embedding_cosine: Share | None = Field(
        None, description="mean over images; null: the two embeddings are of different kinds"
    )
    mask_iou: Share = Field(description="mean over prompts, of masks chosen by the same rule")


class Data(Strict):
    """The data on which quality was measured."""

    name: str = Field(description="drawn scenes, or the annotation file's name")
    images: int = Field(ge=1)
    objects: int = Field(ge=1)
    sha256: str | None = Field(None, description="of the annotation file")


class VariantMeasurements(Strict):
    """One variant's figures."""

    model: str
    weights_hash: str
    preprocessing: str
    device: str
    dtype: str
    engine: EngineName | None = Field(None, description="what ran the encoder; null: unknown")
    threads: int = Field(ge=1)
    cold_start_s: Duration = Field(
        description="from the start of a new process to the first masks, imports included"
    )
    load_s: Duration = Field(description="reading, verifying and loading the weights")
    memory_bytes: int = Field(
        ge=1, description="resident memory of the process after its first masks"
    )
    peak_memory_bytes: int | None = Field(
        None, ge=1, description="peak until then, loading included"
    )
    gpu_memory_bytes: int | None = Field(
        None, ge=1, description="peak that torch reserved on the GPU until then; null: no torch GPU"
    )
    embedding_bytes: int = Field(ge=1, description="of one image, as it is cached")
    encode_ms: dict[int, Duration] = Field(
        min_length=1, description="milliseconds of one pass, by images in it"
    )
    decode_ms: dict[int, Duration] = Field(
        min_length=1, description="milliseconds of one pass, by prompts in it"
    )
    quality: dict[QualityKind, Share] = Field(description="mean IoU by kind of prompt")
    agreement: Agreement | None = None

    @model_validator(mode="after")
    def _sizes(self) -> VariantMeasurements:
        for name in ("encode_ms", "decode_ms"):
            if min(getattr(self, name)) < 1:
                raise ValueError(f"{name} is keyed by the number of items in a pass")
        return self

    @property
    def profile(self) -> Profile:
        """The numbers that decisions need."""
        return Profile(
            encode_ms={n: d.value for n, d in self.encode_ms.items()},
            decode_ms={n: d.value for n, d in self.decode_ms.items()},
            quality={kind: share.value for kind, share in self.quality.items()},
            cold_start_s=self.cold_start_s.value,
            embedding_bytes=self.embedding_bytes,
        )


class Steps(Strict):
    """A step function: ``values[i]`` up to and including ``edges[i]``, the last one beyond."""

    edges: tuple[float, ...]
    values: tuple[float, ...]

    @model_validator(mode="after")
    def _steps(self) -> Steps:
        if len(self.values) != len(self.edges) + 1 or list(self.edges) != sorted(self.edges):
            raise ValueError("edges ascend, and there is one value more than edges")
        if not all(map(isfinite, (*self.edges, *self.values))):
            raise ValueError("edges and values are finite")
        return self

    def __call__(self, at: float) -> float:
        return self.values[bisect_left(self.edges, at)]


class Additive(Strict):
    """A fitted estimate: an intercept plus a step function of each feature.

    Features are those of `serve_app.routing.cascade`.  Additive steps are equivalent to boosted
    stumps (Friedman 2001, "Greedy function approximation"; Lou et al. 2012 on additive
    models): they are readable, and cost one look-up per feature.
    """

    intercept: float = Field(allow_inf_nan=False)
    steps: dict[str, Steps] = Field(default_factory=dict)

    def __call__(self, features: Mapping[str, float]) -> float:
        """The estimate; a missing feature counts with the middle of its step function."""
        total = self.intercept
        for name, steps in self.steps.items():
            at = features.get(name)
            total += steps.values[len(steps.values) // 2] if at is None else steps(at)
        return total


class Point(Strict):
    """One point of a cascade's curve, cross-validated over images.

    ``threshold`` is the minimum mean gain expected of a request to escalate it; with it ``share``
    of the images went through the second encoder and the mean IoU rose by ``gain``.
    """

    threshold: float = Field(allow_inf_nan=False)
    share: float = Field(ge=0, le=1)
    gain: float = Field(allow_inf_nan=False)


class Escalation(Strict):
    """When to repeat prompts of one type on a second variant; fitted on annotated data.

    Attributes:
        gain: expected gain of IoU, from the features of the first variant's masks.
        first, second: IoU of the first and of the second variant's masks, from their own features.
        curve: cost and gain of thresholds, by ascending share, if a request has all prompts of an
            image; ``single``: if each prompt is a request of its own.
        first_iou, second_iou: mean IoU of either variant alone, on the same prompts.
    """

    gain: Additive
    first: Additive
    second: Additive
    curve: tuple[Point, ...] = Field(min_length=1)
    single: tuple[Point, ...] = Field(min_length=1)
    first_iou: float = Field(ge=0, le=1)
    second_iou: float = Field(ge=0, le=1)

    def threshold(self, share: float, alone: bool) -> float:
        """The threshold at which about ``share`` of requests are escalated.

        Infinite if no point of the curve within that share has a gain, or if the second variant
        alone is no better: then the fit may not hold on other images.

        Args:
            share: upper bound.
            alone: the prompt is the only one of its request.
        """
        if self.second_iou <= self.first_iou:
            return inf
        curve = self.single if alone else self.curve
        within = [p for p in curve if p.share <= share + 1e-9 and p.gain > 0]
        return max(within, key=lambda p: p.gain).threshold if within else inf


PromptType = Literal["box-1", "box-3", "point-1", "point-3"]
"""Type of a prompt for cascades: with or without a box, and how many masks it requests."""


class MeasurementsFile(Strict):
    """Contents of a measurements file."""

    format: Literal[1] = 1
    created: str = Field(description="ISO 8601, UTC")
    host: Host
    versions: dict[str, str] = Field(description="of Python and the packages behind the figures")
    data: Data
    entries: dict[str, VariantMeasurements] = Field(description="by variant")
    escalation: dict[str, dict[PromptType, Escalation]] = Field(
        default_factory=dict, description="by 'first>second', two variants, and form of prompt"
    )

    @model_validator(mode="after")
    def _names(self) -> MeasurementsFile:
        import re

        pairs = [pair.split(">") for pair in self.escalation]
        if any(len(pair) != 2 for pair in pairs):
            raise ValueError("escalation is keyed by 'first>second'")
        for name in (*self.entries, *(name for pair in pairs for name in pair)):
            if not re.match(VARIANT_NAME, name):
                raise ValueError(f"{name!r} is not a valid name of a variant")
        return self


@dataclass(frozen=True, slots=True)
class Profile:
    """The measured numbers of a variant that router, scaling policy and simulator use.

    Attributes:
        encode_ms, decode_ms: milliseconds of one pass by the number of items in it.
        quality: mean IoU by kind of prompt (``box``, ``point``).
        cold_start_s: from no process to the first masks.
        embedding_bytes: of one cached image.
    """

    encode_ms: Mapping[int, float]
    decode_ms: Mapping[int, float]
    quality: Mapping[str, float] = field(default_factory=dict)
    cold_start_s: float = 10.0
    embedding_bytes: int = 4 * 2**20


@dataclass(frozen=True, slots=True)
class Measurements:
    """The measurements that are valid for a configuration.

    Attributes:
        profiles: by variant.
        escalation: the cascade's rules between measured variants, by ``first>second`` and type of
            prompt.
        entries: by variant, all figures of the file.
        dominated: variants that are both slower and worse than another, with that other.
        ignored: configured variants without valid figures, with the reason.
        warnings: what is missing or ignored, and why; for the operator's log.
        file: the file's contents; None: absent or unreadable.
    """

    profiles: Mapping[str, Profile] = field(default_factory=dict)
    escalation: Mapping[str, Mapping[PromptType, Escalation]] = field(default_factory=dict)
    entries: Mapping[str, VariantMeasurements] = field(default_factory=dict)
    dominated: Mapping[str, str] = field(default_factory=dict)
    ignored: Mapping[str, str] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    file: MeasurementsFile | None = None


def pass_ms(table: Mapping[int, float], items: int) -> float:
    """Milliseconds of a pass of ``items``, from a table by number of items.

    Linear between measured sizes; below the smallest its value, beyond the largest in proportion.
    """
    if items <= 0:
        return 0.0
    exact = table.get(items)
    if exact is not None:
        return exact
    sizes = sorted(table)
    i = bisect_left(sizes, items)
    if i == 0:
        return table[sizes[0]]
    if i == len(sizes):
        return table[sizes[-1]] * items / sizes[-1]
    a, b = sizes[i - 1], sizes[i]
    return table[a] + (table[b] - table[a]) * (items - a) / (b - a)


def best_ms_per_item(table: Mapping[int, float], max_batch: int) -> float:
    """Least milliseconds an item can take in passes of at most ``max_batch``."""
    most = max(1, max_batch)
    return min(pass_ms(table, n) / n for n in {most, *(n for n in table if n <= most)})


def dominated(profiles: Mapping[str, Profile]) -> dict[str, str]:
    """Variants that are both slower and worse than another, with that other.

    Slower: one new image with one prompt takes longer.  Worse: a lower mean IoU for every kind
    of prompt that both were measured on.  Of equal variants neither dominates.
    """

    def first_ms(p: Profile) -> float:
        return pass_ms(p.encode_ms, 1) + pass_ms(p.decode_ms, 1)

    found: dict[str, str] = {}
    for name, profile in profiles.items():
        for other, better in profiles.items():
            kinds = profile.quality.keys() & better.quality.keys()
            if (
                other != name
                and kinds
                and first_ms(better) < first_ms(profile)
                and all(better.quality[k] > profile.quality[k] for k in kinds)
            ):
                found[name] = other
                break
    return found
