"""Latency estimates from measured pass times and the present load."""

from __future__ import annotations

from serve_app.core.measurements import Profile, best_ms_per_item, pass_ms
from serve_app.routing.types import VariantState


def estimate_ms(profile: Profile, state: VariantState, prompts: int, images: int = 1) -> float:
    """Latency of a request of ``prompts`` on ``images`` that starts now, in milliseconds.

    It has the request's own passes and the wait, which is the larger of two estimates: the queued
    work at the best throughput of the running replicas, and the age of the oldest queued item.  The
    latter also covers causes that measurements cannot predict, such as a stalled replica or other
    load on the host.  A variant that is scaled to zero must start first.
    """
    full, rest = divmod(prompts, max(state.decoder_batch, 1))
    work = full * pass_ms(profile.decode_ms, state.decoder_batch) + pass_ms(profile.decode_ms, rest)
    decode_ms = best_ms_per_item(profile.decode_ms, state.decoder_batch)
    queued = state.prompts * decode_ms / max(state.decoders, 1)
    if images > state.cached:
        work += (images - state.cached) * pass_ms(profile.encode_ms, 1)
        encode_ms = best_ms_per_item(profile.encode_ms, state.encoder_batch)
        queued += state.images * encode_ms / max(state.encoders, 1)
    wait = max(queued * state.slowdown, state.oldest_ms)
    if state.scaled_to_zero:
        wait = max(wait, profile.cold_start_s * 1e3)
    return work * state.slowdown + wait


def idle_ms(profile: Profile, state: VariantState, prompts: int, images: int = 1) -> float:
    """Latency of a request if the variant were running and idle, in milliseconds."""
    idle = VariantState(
        cached=state.cached, encoder_batch=state.encoder_batch, decoder_batch=state.decoder_batch
    )
    return estimate_ms(profile, idle, prompts, images)
