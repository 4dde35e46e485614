"""Inputs and output of the scaling policy.  Pure data: no Ray here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Role = Literal["encoder", "decoder"]


@dataclass(frozen=True, slots=True)
class Pool:
    """The replicas of one deployment: its fixed properties.

    Attributes:
        name: the deployment's name.
        variant: the variant it is a component of.
        role: ``encoder``: an item is an image; ``decoder``: an item is a prompt.  A fused variant
            is one ``decoder`` pool; its ``pass_ms`` includes the encoder's.
        cost: units of the budget that a replica takes (GPUs in fractions, or CPU slots).
        min_replicas, max_replicas: the operator's bounds.
        max_batch: maximum batch size.
        pass_ms: measured milliseconds of one pass, by items in it.
        cold_start_s: seconds from the decision to the first response of a new replica.
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
    """One pool at one moment.  Any field may be missing (None) or implausible: see `decide`.

    Attributes:
        running: replicas that are ready.
        target: number of replicas last requested from Serve.
        ongoing: requests queued or in flight, a mean over the last seconds.
        oldest_s: age of the oldest queued item, of the slowest replica.
        arrivals_per_s: arriving items, of all replicas together.
        batch_fill: mean share of ``max_batch`` in the passes of the last seconds (0-1).
        hit_rate: share of image look-ups that found a cached embedding (0-1; decoders).
    """

    running: float | None = None
    target: float | None = None
    ongoing: float | None = None
    oldest_s: float | None = None
    arrivals_per_s: float | None = None
    batch_fill: float | None = None
    hit_rate: float | None = None


@dataclass(frozen=True, slots=True)
class ScalingDecision:
    """Output of the policy.

    Attributes:
        replicas: desired number, by pool.
        state: input of the next call; JSON values only.
        reasons: for the log, by pool; only of pools that change.
    """

    replicas: Mapping[str, int]
    state: Mapping[str, Any] = field(default_factory=dict)
    reasons: Mapping[str, str] = field(default_factory=dict)
