"""What the scaling policy sees and answers.  Pure data: no Ray here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Role = Literal["encoder", "decoder"]


@dataclass(frozen=True, slots=True)
class Pool:
    """The replicas of one deployment: what does not change while it runs.

    Attributes:
        name: the deployment's.
        variant: whose half it is.
        role: ``encoder``: an item is an image; ``decoder``: an item is a prompt.  A fused variant
            is one pool of the role ``decoder`` whose ``pass_ms`` includes the encoder's.
        cost: units of the budget that a replica takes (GPUs in fractions, or CPU slots).
        min_replicas, max_replicas: the operator's bounds.
        max_batch: items in one pass.
        pass_ms: milliseconds of one pass by items in it, from the ledger.
        cold_start_s: from the decision to the first answer of a new replica.
    """

    name: str
    variant: str
    role: Role
    cost: float
    min_replicas: int
    max_replicas: int
    max_batch: int
    pass_ms: Mapping[int, float]
    cold_start_s: float


@dataclass(frozen=True, slots=True)
class Load:
    """One pool at one moment.  Any field may be missing (None) or absurd: see `decide`.

    Attributes:
        running: replicas that answer now.
        target: replicas asked for last.
        ongoing: requests waiting or under way, a mean over the last seconds.
        oldest_s: age of the oldest waiting item, of the slowest replica.
        arrivals_per_s: items that came in, all replicas together.
        batch_fill: mean share of ``max_batch`` in the passes of the last seconds (0-1).
        hit_rate: share of looked-up images whose embedding was cached (0-1; decoders).
    """

    running: float | None = None
    target: float | None = None
    ongoing: float | None = None
    oldest_s: float | None = None
    arrivals_per_s: float | None = None
    batch_fill: float | None = None
    hit_rate: float | None = None


@dataclass(frozen=True, slots=True)
class Plan:
    """The policy's answer.

    Attributes:
        replicas: wanted, for each pool that was asked about.
        state: handed back at the next call; JSON values alone.
        reasons: for the log, for each pool whose number changes.
    """

    replicas: Mapping[str, int]
    state: Mapping[str, Any] = field(default_factory=dict)
    reasons: Mapping[str, str] = field(default_factory=dict)
