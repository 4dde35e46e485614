"""What the router looks at: the request's hints, and the state of each variant."""

from __future__ import annotations

from dataclasses import dataclass

from serve_app.core.measurements import Profile, QualityKind, best_ms_per_item, pass_ms

AUTO = "auto"


@dataclass(frozen=True, slots=True)
class Ask:
    """What a request says of itself.

    Attributes:
        variant: ``auto``, an alias, or the name of a variant, which is never changed silently.
        max_latency_ms: longest time the caller wants to wait.
        min_quality: least mean IoU, as the ledger has it for this kind of prompt.
        kind: the ledger's column that fits the request's prompts.
        mixed: there are prompts of both kinds; the worse of the two columns counts.
        prompts: how many masks are to be decoded.
        images: how many images are to be embedded: the request's, and its crops.
        spent_ms: how much of ``max_latency_ms`` has passed.
        filtered: masks are kept or dropped by their scores, which mean something else with each
            model: the thresholds are made for the default variant's.
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
class Situation:
    """One variant now.

    Attributes:
        encoders, decoders: replicas that run; 0: it must be woken first.
        images: waiting for the encoder or in it, of all requests.
        prompts: waiting for the decoder or in it, of all requests.
        oldest_ms: how long the oldest of them has been waiting.
        resident: the embedding of this request's image is cached.
        encoder_batch, decoder_batch: most items in one pass.
        slowdown: how much longer than the ledger says passes take at present (1: as there).
    """

    encoders: int = 1
    decoders: int = 1
    images: float = 0
    prompts: float = 0
    oldest_ms: float = 0.0
    resident: bool = False
    encoder_batch: int = 1
    decoder_batch: int = 32
    slowdown: float = 1.0

    @property
    def asleep(self) -> bool:
        """Whether a half that the request needs has no replica."""
        return self.decoders == 0 or (self.encoders == 0 and not self.resident)


@dataclass(frozen=True, slots=True)
class Expected:
    """How long a variant would take for a request, in milliseconds.

    Attributes:
        work_ms: of its own encoder and decoder passes.
        wait_ms: behind what is there already, or until a sleeping variant has woken.
    """

    work_ms: float
    wait_ms: float

    @property
    def total_ms(self) -> float:
        return self.work_ms + self.wait_ms


def expected(profile: Profile, now: Situation, prompts: int, images: int = 1) -> Expected:
    """How long a request of ``prompts`` on ``images`` would take from now.

    Waiting is the larger of two estimates: the work that is queued, at the best rate of the
    running replicas, and the age of the oldest waiting item, which also sees what the ledger
    cannot (a stalled replica, a busy neighbour).
    """
    work = _passes_ms(profile, prompts, now.decoder_batch)
    queued = (
        now.prompts * best_ms_per_item(profile.decode_ms, now.decoder_batch) / max(now.decoders, 1)
    )
    work += (images - now.resident) * pass_ms(profile.encode_ms, 1)
    if images > now.resident:
        queued += (now.images * best_ms_per_item(profile.encode_ms, now.encoder_batch)) / max(
            now.encoders, 1
        )
    wait = max(queued * now.slowdown, now.oldest_ms)
    if now.asleep:
        wait = max(wait, profile.cold_start_s * 1e3)
    return Expected(work * now.slowdown, wait)


def idle_ms(profile: Profile, now: Situation, prompts: int, images: int = 1) -> float:
    """How long a request would take if the variant were awake and had nothing else to do."""
    alone = Situation(
        resident=now.resident, encoder_batch=now.encoder_batch, decoder_batch=now.decoder_batch
    )
    return expected(profile, alone, prompts, images).total_ms


def _passes_ms(profile: Profile, prompts: int, batch: int) -> float:
    """Decoder passes of one request's prompts, one after the other."""
    full, rest = divmod(prompts, max(batch, 1))
    return full * pass_ms(profile.decode_ms, batch) + pass_ms(profile.decode_ms, rest)
