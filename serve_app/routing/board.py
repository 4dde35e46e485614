"""What the ingress knows of the variants' load: its own requests, and what replicas tell.

Not a clock, not a lock: one event loop uses it, and time is handed in.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field

from serve_app.domain.ledger import Profile
from serve_app.domain.types import CacheTier, Prediction, ReplicaLoad
from serve_app.routing.facts import Situation, expected

_FRESH_S = 2.0
"""A replica's word on its queue counts for so long."""

_FORGET_S = 30.0
"""Time constant with which an observed slowdown fades."""

_LEARN = 0.3
"""Weight of the newest observation."""

_QUICKEST, _SLOWEST = 0.5, 8.0
"""Bounds of the factor.  Quicker than half was hardly its own work: it joined another's pass."""


@dataclass(frozen=True, slots=True)
class Capacity:
    """How a variant is deployed.

    Attributes:
        encoders, decoders: replicas that run now.
        encoder_batch, decoder_batch: most items in one pass.
        embeddings: bytes of the embedding cache of one decoder replica.
    """

    encoders: int = 1
    decoders: int = 1
    encoder_batch: int = 1
    decoder_batch: int = 32
    embeddings: int = 512 * 2**20


@dataclass(slots=True, eq=False)
class Ticket:
    """A request under way at a variant; ``woken``: it found the variant asleep."""

    variant: str
    image_id: str
    new_image: bool
    prompts: int
    started: float
    expected_ms: float | None
    woken: bool


@dataclass(slots=True)
class _Variant:
    capacity: Capacity
    profile: Profile | None
    under_way: set[Ticket] = field(default_factory=set)
    told: dict[str, tuple[float, ReplicaLoad]] = field(default_factory=dict)
    slowdown: float = 1.0
    learnt: float = 0.0
    resident: OrderedDict[str, None] = field(default_factory=OrderedDict)


class LoadBoard:
    """The state of each variant, as far as one ingress replica can see it.

    Args:
        capacities: how each variant is deployed.
        profiles: the ledger's, where there is one.
    """

    def __init__(self, capacities: Mapping[str, Capacity], profiles: Mapping[str, Profile]) -> None:
        self._variants = {
            name: _Variant(capacity, profiles.get(name)) for name, capacity in capacities.items()
        }

    def replicas(self, variant: str, encoders: int, decoders: int) -> None:
        """Note how many replicas run now."""
        of = self._variants[variant]
        old = of.capacity
        of.capacity = Capacity(
            encoders, decoders, old.encoder_batch, old.decoder_batch, old.embeddings
        )
        if decoders == 0:
            of.resident.clear()

    def situations(self, image_id: str, now: float) -> dict[str, Situation]:
        """Each variant as a request on ``image_id`` would find it; ``now`` in seconds."""
        return {name: self._situation(of, image_id, now) for name, of in self._variants.items()}

    def situation(self, variant: str, image_id: str, now: float) -> Situation:
        """One variant as a request on ``image_id`` would find it."""
        return self._situation(self._variants[variant], image_id, now)

    def enter(self, variant: str, image_id: str, prompts: int, now: float) -> Ticket:
        """A request goes to a variant; hand the ticket to `leave` however it ends."""
        of = self._variants[variant]
        found = self._situation(of, image_id, now)
        ms = None if of.profile is None else expected(of.profile, found, prompts).total_ms
        ticket = Ticket(variant, image_id, not found.resident, prompts, now, ms, found.asleep)
        of.under_way.add(ticket)
        return ticket

    def leave(self, ticket: Ticket, now: float, answer: Prediction | None) -> None:
        """A request has ended; ``answer`` is the replica's, if there was one."""
        of = self._variants[ticket.variant]
        of.under_way.discard(ticket)
        if answer is None:
            return
        if answer.load is not None:
            # Replicas come and go: those that told nothing for long are forgotten.
            of.told = {name: told for name, told in of.told.items() if now - told[0] <= _FRESH_S}
            of.told[answer.load.replica] = (now, answer.load)
        self._remember(of, ticket.image_id)
        foreseen = ticket.new_image == (answer.cache is CacheTier.MISS) and not ticket.woken
        if ticket.expected_ms and foreseen:
            seen = (now - ticket.started) * 1e3 / ticket.expected_ms
            usual = _faded(of, now)
            # The estimate was made with the slowdown of then: what is off is off by a factor.
            of.slowdown = min(max(usual * seen**_LEARN, _QUICKEST), _SLOWEST)
            of.learnt = now

    def forget(self, variant: str, image_id: str) -> None:
        """The variant turned out not to have an image's embedding any more."""
        self._variants[variant].resident.pop(image_id, None)

    def _situation(self, of: _Variant, image_id: str, now: float) -> Situation:
        images = len({t.image_id for t in of.under_way if t.new_image})
        prompts = sum(t.prompts for t in of.under_way)
        overdue = [(now - t.started) * 1e3 - t.expected_ms for t in of.under_way if t.expected_ms]
        told = [load for at, load in of.told.values() if now - at <= _FRESH_S]
        if told:
            # Other ingress replicas have requests there as well.
            images = max(images, sum(load.images for load in told))
            prompts = max(prompts, sum(load.prompts for load in told))
        return Situation(
            encoders=of.capacity.encoders,
            decoders=of.capacity.decoders,
            images=images,
            prompts=prompts,
            oldest_ms=max([0.0, *overdue, *(load.oldest_ms for load in told)]),
            resident=image_id in of.resident,
            encoder_batch=of.capacity.encoder_batch,
            decoder_batch=of.capacity.decoder_batch,
            slowdown=_faded(of, now),
        )

    def _remember(self, of: _Variant, image_id: str) -> None:
        of.resident[image_id] = None
        of.resident.move_to_end(image_id)
        size = of.profile.embedding_bytes if of.profile is not None else 4 * 2**20
        room = of.capacity.embeddings // size * max(of.capacity.decoders, 1)
        while len(of.resident) > room:
            of.resident.popitem(last=False)


def _faded(of: _Variant, now: float) -> float:
    """The slowdown last learnt, on its way back to 1."""
    return float(of.slowdown ** math.exp(-max(0.0, now - of.learnt) / _FORGET_S))
