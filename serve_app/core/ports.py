"""The protocols between the flow and the engines and deployments.

`serve_app.flow.flow` depends on these only.  Each has an implementation in one process (tests, the
fused graph, the evaluation command) and one over Ray handles (`serve_app.deployments.calls`).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from serve_app.core.inference import (
    Candidate,
    DecodeJob,
    DecodeOptions,
    Embedding,
    Prediction,
    Proposal,
    ScorerInfo,
    TextScores,
)
from serve_app.core.request import AUTO, EmbedRequest, SegmentRequest
from serve_app.core.types import (
    CacheTier,
    EmbedResult,
    Mask,
    Prompt,
    ProposalSource,
    RgbArray,
    SegmentResult,
    UnknownText,
)


class EncoderEngine(Protocol):
    """A model's image encoder: blocking, batched, on one device."""

    def encode_batch(self, images: Sequence[RgbArray]) -> list[Embedding]:
        """Embed upright ``(H, W, 3) uint8`` RGB images of any sizes, batched where possible."""


class DecoderEngine(Protocol):
    """A model's mask decoder: blocking, batched, on one device."""

    def decode_batch(self, jobs: Sequence[DecodeJob]) -> list[tuple[Mask, ...]]:
        """Decode prompts of different images in one pass, with the same masks as one by one.

        Coordinates are in pixels of the upright image; masks have its full size.
        """


@dataclass(frozen=True, slots=True)
class Detection:
    """One detected object.

    Attributes:
        box: ``(x0, y0, x1, y1)`` in pixels of the upright image, inside it.
        label: name of the class.
        score: 0-1.
    """

    box: tuple[float, float, float, float]
    label: str
    score: float


class DetectorEngine(Protocol):
    """An object detector: blocking, on one device."""

    def detect(self, pixels: RgbArray) -> list[Detection]:
        """Detect objects in an upright ``(H, W, 3) uint8`` RGB image, best first."""


class ProposalsEngine(Protocol):
    """The computation of a `Proposer`: blocking."""

    def propose(
        self,
        pixels: RgbArray | None,
        size: tuple[int, int],
        source: ProposalSource,
        points_per_side: int,
    ) -> tuple[Proposal, ...]:
        """See `Proposer.propose`."""


class TextScoringEngine(Protocol):
    """The computation of a `TextScorer`: blocking, on one torch device."""

    info: ScorerInfo
    device: str

    def unknown(self, texts: Sequence[str]) -> tuple[UnknownText | None, ...]:
        """See `TextScorer.unknown`."""

    def score(
        self, pixels: RgbArray, candidates: Sequence[Candidate], texts: Sequence[str]
    ) -> TextScores:
        """See `TextScorer.score`."""


class EmbeddingCache(Protocol):
    """Embeddings by content-addressed key; concurrent misses share one computation."""

    async def get_or_compute(
        self, key: str, compute: Callable[[], Awaitable[Embedding]] | None
    ) -> tuple[Embedding, CacheTier] | None:
        """The embedding and its tier; None if it is not cached and ``compute`` is None."""


class Predictor(Protocol):
    """One variant: its embedding cache, encoder and decoder."""

    async def predict(
        self,
        image_id: str,
        pixels: RgbArray | None,
        prompts: Sequence[Prompt],
        options: DecodeOptions,
    ) -> Prediction | None:
        """Masks for each prompt; with no prompts the image is embedded only.

        Without ``pixels`` the embedding must be cached; so a prompt on a known image transfers no
        pixels.

        Returns:
            The masks; None if the embedding is not cached: call again with ``pixels``.
        """

    async def scale_from_zero(self) -> None:
        """Start the variant if it is scaled to zero, and return when it is ready."""


class Proposer(Protocol):
    """Candidate regions of an image, as prompts for SAM."""

    async def propose(
        self,
        pixels: RgbArray | None,
        size: tuple[int, int],
        source: ProposalSource,
        points_per_side: int,
    ) -> tuple[Proposal, ...]:
        """Propose regions of an upright RGB image.

        Args:
            pixels: the image; None for the grid, which needs only its size.
            size: ``(width, height)`` in pixels.
            source: kind of proposals.
            points_per_side: of the grid; ignored by other sources.
        """


class TextScorer(Protocol):
    """Scores candidate regions against texts."""

    async def info(self) -> ScorerInfo:
        """The engine in use and its requirements on the flow."""

    async def unknown(self, texts: Sequence[str]) -> tuple[UnknownText | None, ...]:
        """Of each text, why the engine cannot look for it; None where it can."""

    async def score(
        self, pixels: RgbArray, candidates: Sequence[Candidate], texts: Sequence[str]
    ) -> TextScores:
        """Calibrated scores (0-1) of each text against each candidate of an upright image."""


class SegmentationService(Protocol):
    """The whole graph: the interface for HTTP, Python callers and the evaluation."""

    async def segment(self, request: SegmentRequest) -> SegmentResult:
        """Segment one image.

        Raises:
            SamServeError: see `serve_app.core.errors`.
        """

    async def embed(
        self, image: EmbedRequest | bytes | RgbArray | str, variant: str = AUTO
    ) -> EmbedResult:
        """Register and encode an image; later prompts can refer to its ``image_id``."""

    async def models(self) -> Mapping[str, Any]:
        """The deployed variants, their models and weights, the text engine, the limits."""

    async def ready(self) -> bool:
        """Whether all deployments that do not scale to zero have loaded their weights."""
