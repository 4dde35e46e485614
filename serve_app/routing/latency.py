"""Latency estimates from measured pass times and the present load."""

from __future__ import annotations

from dataclasses import dataclass

from serve_app.core.measurements import Profile, best_ms_per_item, pass_ms
from serve_app.routing.types import VariantState


@dataclass(frozen=True, slots=True)
class LatencyEstimate:
    """Expected latency of a request on a variant, in milliseconds.

    Attributes:
        work_ms: time of its own encoder and decoder passes.
        wait_ms: time in queues, or until a variant has scaled from zero.
    """

    work_ms: float
    wait_ms: float

    @property
    def total_ms(self) -> float:
        return self.work_ms + self.wait_ms


def estimate_latency(
    profile: Profile, state: VariantState, prompts: int, images: int = 1
) -> LatencyEstimate:
    """Latency of a request of ``prompts`` on ``images`` that starts now.

    The wait is the larger of two estimates: the queued work at the best throughput of the running
    replicas, and the age of the oldest queued item.  The latter also covers causes
    that measurements cannot predict, such as a stalled replica or other load on the host.
    """
    work = _passes_ms(profile, prompts, state.decoder_batch)
    queued = (
        state.prompts
        * best_ms_per_item(profile.decode_ms, state.decoder_batch)
        / max(state.decoders, 1)
    )
    work += (images - state.cached) * pass_ms(profile.encode_ms, 1)
    if images > state.cached:
        queued += (state.images * best_ms_per_item(profile.encode_ms, state.encoder_batch)) / max(
            state.encoders, 1
        )
    wait = max(queued * state.slowdown, state.oldest_ms)
    if state.scaled_to_zero:
        wait = max(wait, profile.cold_start_s * 1e3)
    return LatencyEstimate(work * state.slowdown, wait)


def idle_ms(profile: Profile, state: VariantState, prompts: int, images: int = 1) -> float:
    """Latency of a request if the variant were running and idle, in milliseconds."""
    idle = VariantState(
        cached=state.cached, encoder_batch=state.encoder_batch, decoder_batch=state.decoder_batch
    )
    return estimate_latency(profile, idle, prompts, images).total_ms


def _passes_ms(profile: Profile, prompts: int, batch: int) -> float:
    """Consecutive decoder passes of one request's prompts."""
    full, rest = divmod(prompts, max(batch, 1))
    return full * pass_ms(profile.decode_ms, batch) + pass_ms(profile.decode_ms, rest)
