"""What the ingress knows of the variants' load: its own requests, and what replicas tell.

Not a clock, not a lock: one event loop uses it, and time is handed in.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from serve_app.core.measurements import Profile
from serve_app.core.types import CacheTier, Prediction, ReplicaLoad
from serve_app.routing.facts import Situation, expected

_FRESH_S = 2.0
"""A replica's word on its queue counts for so long."""

_FORGET_S = 30.0
"""Time constant with which an observed slowdown fades."""

_LEARN = 0.3
"""Weight of the newest observation."""

_QUICKEST, _SLOWEST = 0.5, 8.0
"""Bounds of the factor.  Quicker than half was hardly its own work: it joined another's pass."""


_MAX_NAMES = 65_536


@dataclass(frozen=True, slots=True)
class Capacity:
    """How a variant is deployed.

    Attributes:
        encoders, decoders: replicas that run now.
        encoder_batch, decoder_batch: most items in one pass.
        embeddings: bytes of the embedding cache of one decoder replica.
        shared: decoder replicas have a common tier of embeddings as well.
    """

    encoders: int = 1
    decoders: int = 1
    encoder_batch: int = 1
    decoder_batch: int = 32
    embeddings: int = 512 * 2**20
    shared: bool = False


@dataclass(slots=True, eq=False)
class Ticket:
    """A request under way at a variant.

    ``unsure``: its time teaches nothing; the variant slept, or there may be fewer prompts.
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
        # With another number of caches some images have another home (`routing.affinity`).
        moved = decoders != of.capacity.decoders and not of.capacity.shared
        of.capacity = replace(of.capacity, encoders=encoders, decoders=decoders)
        if decoders == 0 or moved:
            of.resident.clear()

    def situations(self, image_id: str, now: float) -> dict[str, Situation]:
        """Each variant as a request on ``image_id`` would find it; ``now`` in seconds."""
        return {name: self._situation(of, image_id, now) for name, of in self._variants.items()}

    def situation(self, variant: str, image_id: str, now: float) -> Situation:
        """One variant as a request on ``image_id`` would find it."""
        return self._situation(self._variants[variant], image_id, now)

    def enter(
        self, variant: str, image_id: str, prompts: int, now: float, most: bool = False
    ) -> Ticket:
        """A request goes to a variant; hand the ticket to `leave` however it ends.

        ``most``: it may turn out to have fewer prompts, so that its time teaches nothing.
        """
        of = self._variants[variant]
        found = self._situation(of, image_id, now)
        ms = None if of.profile is None else expected(of.profile, found, prompts).total_ms
        unsure = most or found.asleep
        ticket = Ticket(variant, image_id, not found.resident, prompts, now, ms, unsure)
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
        foreseen = ticket.new_image == (answer.cache is CacheTier.MISS) and not ticket.unsure
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
        capacity = of.capacity
        images = len({t.image_id for t in of.under_way if t.new_image})
        prompts = sum(t.prompts for t in of.under_way)
        overdue = [(now - t.started) * 1e3 - t.expected_ms for t in of.under_way if t.expected_ms]
        told = [(max(0.0, now - at), load) for at, load in of.told.values()]
        # Other ingress replicas have requests there as well.  What was told fades: queues drain.
        fresh = [(1.0 - age / _FRESH_S, load) for age, load in told if age < _FRESH_S]
        return Situation(
            encoders=capacity.encoders,
            decoders=capacity.decoders,
            images=max(images, sum(part * load.images for part, load in fresh)),
            prompts=max(prompts, sum(part * load.prompts for part, load in fresh)),
            oldest_ms=max([0.0, *overdue, *(part * load.oldest_ms for part, load in fresh)]),
            resident=image_id in of.resident,
            encoder_batch=capacity.encoder_batch,
            decoder_batch=capacity.decoder_batch,
            slowdown=_faded(of, now),
        )

    def _remember(self, of: _Variant, image_id: str) -> None:
        of.resident[image_id] = None
        of.resident.move_to_end(image_id)
        size = of.profile.embedding_bytes if of.profile is not None else 4 * 2**20
        room = of.capacity.embeddings // size * max(of.capacity.decoders, 1)
        while len(of.resident) > min(room, _MAX_NAMES):
            of.resident.popitem(last=False)


def _faded(of: _Variant, now: float) -> float:
    """The slowdown last learnt, on its way back to 1."""
    return float(of.slowdown ** math.exp(-max(0.0, now - of.learnt) / _FORGET_S))
