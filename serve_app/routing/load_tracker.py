"""Load of each variant, from one ingress replica's own requests and the replicas' reports.

Not thread-safe: used by one event loop.  The caller passes the time.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from serve_app.core.inference import Prediction, ReplicaLoad
from serve_app.core.measurements import Profile
from serve_app.core.types import CacheTier
from serve_app.routing.latency import estimate_ms
from serve_app.routing.types import VariantState

_REPORT_TTL_S = 2.0
"""How long a replica's report of its queue is used."""

_SLOWDOWN_DECAY_S = 30.0
"""Time constant with which an observed slowdown decays."""

_LEARNING_RATE = 0.3
"""Weight of the newest observation."""

_MIN_SLOWDOWN, _MAX_SLOWDOWN = 0.5, 8.0
"""Bounds of the slowdown.  A request faster than half the estimate probably shared a pass."""


_MAX_CACHED_IDS = 65_536


@dataclass(frozen=True, slots=True)
class Capacity:
    """How a variant is deployed.

    Attributes:
        encoders, decoders: running replicas.
        encoder_batch, decoder_batch: maximum batch sizes.
        embeddings: size of one decoder replica's embedding cache, in bytes.
        shared: decoder replicas share a second cache tier.
    """

    encoders: int = 1
    decoders: int = 1
    encoder_batch: int = 1
    decoder_batch: int = 32
    embeddings: int = 512 * 2**20
    shared: bool = False


@dataclass(slots=True, eq=False)
class Ticket:
    """A request in flight at a variant.

    ``unsure``: its latency does not update the slowdown, because the variant was scaled to zero or
    the number of prompts is only an upper bound.
    """

    variant: str
    image_id: str
    new_image: bool
    prompts: int
    started: float
    expected_ms: float | None
    unsure: bool


@dataclass(slots=True)
class _Variant:
    capacity: Capacity
    profile: Profile | None
    in_flight: set[Ticket] = field(default_factory=set)
    reports: dict[str, tuple[float, ReplicaLoad]] = field(default_factory=dict)
    slowdown: float = 1.0
    learnt: float = 0.0
    cached: OrderedDict[str, None] = field(default_factory=OrderedDict)


class LoadTracker:
    """The estimated state of each variant in one ingress replica."""

    def __init__(self, capacities: Mapping[str, Capacity], profiles: Mapping[str, Profile]) -> None:
        self._variants = {
            name: _Variant(capacity, profiles.get(name)) for name, capacity in capacities.items()
        }

    def replicas(self, variant: str, encoders: int, decoders: int) -> None:
        """Set the number of running replicas."""
        of = self._variants[variant]
        # A different number of caches moves some images to another replica (`routing.affinity`).
        moved = decoders != of.capacity.decoders and not of.capacity.shared
        of.capacity = replace(of.capacity, encoders=encoders, decoders=decoders)
        if decoders == 0 or moved:
            of.cached.clear()

    def variant_states(self, image_id: str, now: float) -> dict[str, VariantState]:
        """State of each variant for a request on ``image_id``; ``now`` in seconds."""
        return {name: self.variant_state(name, image_id, now) for name in self._variants}

    def variant_state(self, variant: str, image_id: str, now: float) -> VariantState:
        """State of one variant for a request on ``image_id``."""
        of = self._variants[variant]
        capacity = of.capacity
        images = len({t.image_id for t in of.in_flight if t.new_image})
        prompts = sum(t.prompts for t in of.in_flight)
        overdue = [(now - t.started) * 1e3 - t.expected_ms for t in of.in_flight if t.expected_ms]
        aged = [(max(0.0, now - at), load) for at, load in of.reports.values()]
        # Reports include the requests of other ingress replicas; they lose weight with age,
        # because queues drain.
        fresh = [(1.0 - age / _REPORT_TTL_S, load) for age, load in aged if age < _REPORT_TTL_S]
        return VariantState(
            encoders=capacity.encoders,
            decoders=capacity.decoders,
            images=max(images, sum(weight * load.images for weight, load in fresh)),
            prompts=max(prompts, sum(weight * load.prompts for weight, load in fresh)),
            oldest_ms=max([0.0, *overdue, *(weight * load.oldest_ms for weight, load in fresh)]),
            cached=image_id in of.cached,
            encoder_batch=capacity.encoder_batch,
            decoder_batch=capacity.decoder_batch,
            slowdown=_decayed(of, now),
        )

    def acquire(
        self, variant: str, image_id: str, prompts: int, now: float, most: bool = False
    ) -> Ticket:
        """Count a request as in flight until its ticket is passed to `release`.

        ``most``: ``prompts`` is an upper bound, so the latency does not update the slowdown.
        """
        of = self._variants[variant]
        found = self.variant_state(variant, image_id, now)
        ms = None if of.profile is None else estimate_ms(of.profile, found, prompts)
        unsure = most or found.scaled_to_zero
        ticket = Ticket(variant, image_id, not found.cached, prompts, now, ms, unsure)
        of.in_flight.add(ticket)
        return ticket

    def release(self, ticket: Ticket, now: float, prediction: Prediction | None) -> None:
        """Record the end of a request; ``prediction`` is its result, None if it failed."""
        of = self._variants[ticket.variant]
        of.in_flight.discard(ticket)
        if prediction is None:
            return
        if prediction.load is not None:
            # Reports of replicas that are gone must expire.
            recent = ((name, r) for name, r in of.reports.items() if now - r[0] <= _REPORT_TTL_S)
            of.reports = {**dict(recent), prediction.load.replica: (now, prediction.load)}
        self._remember(of, ticket.image_id)
        cache_as_expected = ticket.new_image == (prediction.cache is CacheTier.MISS)
        if ticket.expected_ms and cache_as_expected and not ticket.unsure:
            ratio = (now - ticket.started) * 1e3 / ticket.expected_ms
            # The estimate already contained the slowdown: the ratio is a correction of it.
            corrected = _decayed(of, now) * ratio**_LEARNING_RATE
            of.slowdown = min(max(corrected, _MIN_SLOWDOWN), _MAX_SLOWDOWN)
            of.learnt = now

    def forget(self, variant: str, image_id: str) -> None:
        """Record that the variant no longer has an image's embedding."""
        self._variants[variant].cached.pop(image_id, None)

    def _remember(self, of: _Variant, image_id: str) -> None:
        of.cached[image_id] = None
        of.cached.move_to_end(image_id)
        size = of.profile.embedding_bytes if of.profile is not None else 4 * 2**20
        room = of.capacity.embeddings // size * max(of.capacity.decoders, 1)
        while len(of.cached) > min(room, _MAX_CACHED_IDS):
            of.cached.popitem(last=False)


def _decayed(of: _Variant, now: float) -> float:
    """The last observed slowdown, decaying to 1."""
    return float(of.slowdown ** math.exp(-max(0.0, now - of.learnt) / _SLOWDOWN_DECAY_S))
