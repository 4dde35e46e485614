"""Messages between the command ``measure`` and its probe processes.

The request is one JSON document on stdin; every line of stdout is a `ProbeEvent` as JSON.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from serve_app.core.measurements import Agreement, Data, PromptType
from serve_app.core.settings import GraphSettings, Strict
from serve_tools.profiling.quality import QualityRecord


class Effort(Strict):
    """Extent and data of a measurement.

    Attributes:
        images_dir, annotations: COCO annotations and their images; None: synthetic scenes.
        images: at most this many of them, chosen with ``seed``; or the number of scenes.
        objects: maximum number of objects prompted in one image, chosen with ``seed``.
        forms: of the prompts; quality counts two of them, cascades are fitted on all.
        encode_sizes, decode_sizes: images, and prompts, in a pass.
        repeats: passes of each size; none is begun once ``budget_s`` was spent on its size.
        cold_starts: new processes, of which the last goes on to measure the rest.
        parity_images: how many of the images of quality are compared with the reference.
    """

    images_dir: str | None = None
    annotations: str | None = None
    images: int = Field(20, ge=1)
    objects: int = Field(12, ge=1)
    forms: tuple[PromptType, ...] = ("box-1", "point-3", "box-3", "point-1")
    encode_sizes: tuple[int, ...] = (1, 2, 4, 8)
    decode_sizes: tuple[int, ...] = (1, 8, 32)
    repeats: int = Field(5, ge=1)
    budget_s: float = Field(20.0, gt=0)
    cold_starts: int = Field(3, ge=1)
    parity_images: int = Field(4, ge=1)
    seed: int = 0


QUICK = Effort(
    images=8,
    objects=6,
    forms=("box-1", "point-3"),
    encode_sizes=(1, 2),
    decode_sizes=(1, 8),
    repeats=3,
    budget_s=4.0,
    cold_starts=1,
    parity_images=2,
)
"""What routing needs, in about half a minute a variant on two cores."""


class ProbeRequest(Strict):
    """What one process measures; without ``effort`` it ends after its first masks."""

    settings: GraphSettings
    variant: str
    effort: Effort | None = None


class ProbeResult(Strict):
    """All measurements of a variant in one process; every pass's time in milliseconds."""

    memory_bytes: int
    peak_memory_bytes: int | None
    gpu_memory_bytes: int | None
    embedding_bytes: int
    encode_ms: dict[int, list[float]]
    decode_ms: dict[int, list[float]]
    data: Data
    records: tuple[QualityRecord, ...]
    agreement: Agreement


class ProbeEvent(Strict):
    """One line of a probe.

    Attributes:
        kind: ``first``: the first masks are ready (the parent stops its clock); ``failed``:
            ``text`` is the reason, for the operator.
        load_s: with ``first``: reading, verifying and loading the weights.
    """

    kind: Literal["first", "progress", "result", "failed"]
    text: str = ""
    load_s: float | None = None
    result: ProbeResult | None = None
