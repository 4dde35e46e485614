"""The service around the replicas: router, scaling, cache, security, ingress."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

from pydantic import Field, field_validator, model_validator

from serve_app.core.settings.base import Strict
from serve_app.core.settings.replicas import Replicas


class QuantizedSettings(Strict):
    """Conditions on an int8 model's own measurements for its deployment."""

    least_speedup: float = Field(
        1.1, gt=0, description="minimum speedup of its encoder over the original's"
    )
    most_iou_loss: float = Field(
        0.005, ge=0, le=1, description="maximum loss of mean IoU against the original"
    )


class RouterSettings(Strict):
    """Variant names, and the cascade to a second variant."""

    renamed_keys: ClassVar[Mapping[str, str]] = {"cascade_wakes": "cascade_scales_from_zero"}

    default: str = Field("fast", description="the variant of ``auto``")
    aliases: dict[str, str] = Field(
        default_factory=dict, description="further names of variants, each with the variant's name"
    )
    cascade_to: str | None = Field(
        None,
        description="the variant that repeats prompts of which the default was unsure; null: none",
    )
    cascade_share: float = Field(
        0.4,
        gt=0,
        le=1,
        description="share of images to encode a second time, on images like the measured ones",
    )
    cascade_max_ms: float = Field(
        10_000.0,
        gt=0,
        description="maximum time for the second variant if the request has no max_latency_ms",
    )
    cascade_scales_from_zero: bool = Field(
        True,
        description="start the second variant, if scaled to zero, for later requests",
    )

    def among(self, names: Sequence[str]) -> RouterSettings:
        """The same for some variants; the first is the default if the present one is absent."""
        return self.model_copy(
            update={
                "default": self.default if self.default in names else names[0],
                "aliases": {a: name for a, name in self.aliases.items() if name in names},
                "cascade_to": self.cascade_to if self.cascade_to in names else None,
            }
        )


class MeasurementsSettings(Strict):
    """Where the measurements of this host are."""

    path: str | None = Field(
        None, description="their file; null: $SAM_SERVE_LEDGER or the user's cache"
    )
    trust_host: bool = Field(
        False,
        description="use measurements of another host: for a cluster with replicas on nodes of "
        "another kind than the one that builds the graph",
    )


class ScalingSettings(Strict):
    """Settings of the application's scaling policy (`serve_app.scaling.policy`)."""

    budget: float | None = Field(
        None,
        gt=0,
        description="units that all encoders and decoders share: GPUs if any requests num_gpus, "
        "else CPU slots (num_cpus); null: no bound beyond max_replicas",
    )
    goal_ms: float = Field(
        1000.0, gt=0, description="latency goal of an item in one pool, queueing included"
    )
    utilisation: float = Field(
        0.75, gt=0, le=1, description="target load of a replica relative to its best throughput"
    )
    surge: float = Field(
        2.0,
        ge=1,
        description="multiple of the present load for which replicas are kept, within `reserve`: "
        "a sudden load arrives before any cold start has finished",
    )
    reserve: float = Field(
        0.9,
        ge=0,
        le=1,
        description="share of the budget for replicas that only a surge needs; 0: none, for "
        "clusters that are billed by use",
    )
    hold_s: float = Field(
        300.0,
        gt=0,
        description="seconds for which fewer replicas must have sufficed before any is stopped; "
        "if the budget is too small, replicas idle for half a minute are stopped",
    )


class CacheSettings(Strict):
    """Caches of embeddings and images for later prompts."""

    renamed_keys: ClassVar[Mapping[str, str]] = {"redis_rest_s": "redis_probe_interval_s"}

    embedding_bytes: int = Field(512 * 2**20, ge=0, description="memory tier of one replica")
    image_bytes: int = Field(128 * 2**20, ge=0, description="uploaded files cached by the ingress")
    redis_url: str | None = Field(
        None,
        # It may hold a password.
        repr=False,
        description="a shared second tier, redis://, rediss:// (TLS) or unix://; null: none",
    )
    redis_ttl_s: int = Field(3600, ge=1, description="lifetime of a value in Redis")
    redis_timeout_s: float = Field(
        0.05,
        gt=0,
        le=1,
        description="timeout of a lookup, after which it counts as a miss: the latency that a "
        "hanging Redis adds to a request.  4 MiB, an embedding of vit_t, take 5 ms on one idle "
        "machine, and 34 ms on a link of 1 Gbit/s alone",
    )
    redis_connections: int = Field(
        2,
        ge=1,
        description="concurrent lookups of one replica; two more connections write and ping.  Few, "
        "because large values that are read concurrently all time out together",
    )
    redis_queue_bytes: int = Field(
        64 * 2**20, ge=0, description="values queued for writing; further ones are dropped"
    )
    redis_value_bytes: int = Field(
        32 * 2**20, gt=0, description="largest value that is written or read"
    )
    redis_probe_interval_s: float = Field(
        2.0,
        gt=0,
        le=8,
        description="time between pings after three consecutive failures, until Redis responds",
    )

    @field_validator("redis_url")
    @classmethod
    def _known_scheme(cls, url: str | None) -> str | None:
        if url is not None and not url.startswith(("redis://", "rediss://", "unix://")):
            raise ValueError("cache.redis_url must begin with redis://, rediss:// or unix://")
        return url


class Rate(Strict):
    """Rate limit of a caller, in each ingress replica."""

    requests_per_minute: int | None = Field(
        None, ge=1, description="each image of a batch counts as one; null: unlimited"
    )
    burst: int = Field(20, ge=1, description="requests allowed at once after a quiet period")


class ApiKey(Rate):
    """An authorized caller.  ``python -m serve_app key NAME`` makes a key and its entry."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.@-]{0,63}$", description="in the audit log")
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$", description="of the key, which is not stored")


class SecuritySettings(Rate):
    """API keys and rate limits.  The rate is that of all callers without keys together."""

    api_keys: tuple[ApiKey, ...] = Field(
        (), description="if there are any, everything but the probes requires one"
    )

    @model_validator(mode="after")
    def _distinct(self) -> SecuritySettings:
        for what in ("name", "sha256"):
            if len({getattr(key, what) for key in self.api_keys}) < len(self.api_keys):
                raise ValueError(f"security.api_keys has two entries of the same {what}")
        return self


class IngressSettings(Replicas):
    max_surge_percent: int = Field(
        100,
        ge=0,
        le=100,
        description="additional replicas during an update: with 100 the old ones serve until the "
        "new ones are ready; takes num_cpus for both",
    )
    drain_file: str | None = Field(
        None,
        description="while this file exists, new requests are rejected and /readyz says so: for "
        "draining a node before it is stopped",
    )
    http_host: str | None = Field(
        None,
        description="the address in http_options.host, for the warning about a service that other "
        "machines can reach without API keys; null: unknown, which counts as reachable",
    )
    # More than `Limits.most_requests`, so that the service itself rejects requests, with its codes.
    max_ongoing_requests: int = Field(256, ge=1)
    request_timeout_s: float = Field(
        120.0, gt=0, description="maximum time of one request; less than the proxy's own"
    )
