"""Inputs of the router: what a request needs, and the present state of each variant."""

from __future__ import annotations

from dataclasses import dataclass

from serve_app.core.measurements import Profile, QualityKind

AUTO = "auto"


@dataclass(frozen=True, slots=True)
class RoutingQuery:
    """Properties of a request that the router uses.

    Attributes:
        variant: ``auto``, an alias, or the name of a variant, which is never replaced silently.
        max_latency_ms: the caller's latency bound.
        min_quality: lowest acceptable mean IoU, as measured for this kind of prompt.
        kind: kind of the request's prompts, which selects the measured quality.
        mixed: there are prompts of both kinds; the lower of the two qualities counts.
        prompts: number of masks to decode.
        images: number of images to embed: the request's image and its crops.
        spent_ms: the part of ``max_latency_ms`` that has already elapsed.
        filtered: masks are kept or dropped by score.  Scores of different models are not
            comparable, and the thresholds are those of the default variant.
    """

    variant: str = AUTO
    max_latency_ms: float | None = None
    min_quality: float | None = None
    kind: QualityKind = "box"
    mixed: bool = False
    prompts: int = 1
    images: int = 1
    spent_ms: float = 0.0
    filtered: bool = False

    def quality(self, profile: Profile) -> float | None:
        """A variant's mean IoU for this request's prompts; None: not measured."""
        kinds = ("box", "point") if self.mixed else (self.kind,)
        found = [profile.quality[kind] for kind in kinds if kind in profile.quality]
        return min(found) if len(found) == len(kinds) else None


@dataclass(frozen=True, slots=True)
class VariantState:
    """Present state of a variant for one request.

    Attributes:
        encoders, decoders: running replicas; 0: scaled to zero.
        images: images queued or in flight at the encoder, of all requests.
        prompts: prompts queued or in flight at the decoder, of all requests.
        oldest_ms: age of the oldest of them.
        cached: the embedding of this request's image is cached.
        encoder_batch, decoder_batch: maximum batch sizes.
        slowdown: observed duration of passes relative to the measured one (1: equal).
    """

    encoders: int = 1
    decoders: int = 1
    images: float = 0
    prompts: float = 0
    oldest_ms: float = 0.0
    cached: bool = False
    encoder_batch: int = 1
    decoder_batch: int = 32
    slowdown: float = 1.0

    @property
    def scaled_to_zero(self) -> bool:
        """Whether a component that the request needs has no replica."""
        return self.decoders == 0 or (self.encoders == 0 and not self.cached)
