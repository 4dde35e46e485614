"""The argument of the graph builders, validated: an unknown or invalid setting is an error.

``configs/*.yaml`` have these values under ``args``.  Devices, dtypes, threads and memory shares
are configured, not detected.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from ipaddress import ip_address
from typing import Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from serve_app.core.limits import Limits
from serve_app.core.types import ProposalSource

log = logging.getLogger(__name__)

VARIANT_NAME = r"^[a-z0-9][a-z0-9_.-]{0,31}$"
_ORIGIN = re.compile(
    r"[a-z][a-z0-9+.-]*://[a-z0-9.-]+(:[0-9]{1,5})?|https?://\[[0-9a-f:]+\](:[0-9]{1,5})?"
)
"""As browsers send it: in small letters, without a path."""
_MIN_COST = 1e-6

EngineName = Literal["torch", "compiled", "openvino", "onnxruntime"]


class Strict(BaseModel):
    """A model that rejects unknown keys.

    Attributes:
        renamed_keys: former names of keys, each with its present name.  A former name is accepted
            with a warning for one version; remove the entry in the next one.
    """

    # Validation errors must not contain values, which may be passwords.
    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    renamed_keys: ClassVar[Mapping[str, str]] = {}

    @model_validator(mode="before")
    @classmethod
    def _rename_keys(cls, values: Any) -> Any:
        if not isinstance(values, Mapping):
            return values
        found = dict(values)
        for old in cls.renamed_keys.keys() & found.keys():
            new = cls.renamed_keys[old]
            if new in found:
                raise ValueError(f"{old} is the former name of {new}: give only {new}")
            found[new] = found.pop(old)
            log.warning(
                "the settings key %s was renamed: use %s, the next version rejects %s",
                old,
                new,
                old,
            )
        for name in map(str, found.keys() - cls.model_fields.keys()):
            if near := get_close_matches(name, cls.model_fields, 1):
                raise ValueError(f"{name} is not a key here: did you mean {near[0]}?")
        return found


class Compute(Strict):
    """Where and how a model runs."""

    device: str = Field("cpu", pattern=r"^(cpu|cuda(:\d+)?)$", description="torch device")
    dtype: Literal["float32", "float16", "bfloat16"] = Field(
        "float32", description="precision of the model's arithmetic"
    )
    engine: EngineName | None = Field(
        None,
        description="runtime of a segmentation model's encoder, one of its `engines` in the "
        "registry; null: the first of them that supports the device",
    )
    threads: int = Field(1, ge=1, description="CPU threads of one replica")
    memory_fraction: float | None = Field(
        None, gt=0, le=1, description="maximum share of the GPU's memory for this replica"
    )

    @model_validator(mode="after")
    def _half_needs_gpu(self) -> Compute:
        if self.device == "cpu" and self.dtype == "float16":
            raise ValueError("float16 needs a GPU; use float32 or bfloat16 on a CPU")
        if self.device == "cpu" and self.memory_fraction is not None:
            raise ValueError("memory_fraction is for GPUs")
        if self.device != "cpu" and self.engine == "openvino":
            raise ValueError("the engine openvino is for CPUs")
        return self


class Batching(Strict):
    """How requests are batched into one pass of the model."""

    max_batch_size: int = Field(8, ge=1, description="maximum items in one pass")
    batch_wait_timeout_s: float = Field(0.005, ge=0, description="maximum wait for a fuller batch")
    max_concurrent_batches: int = Field(1, ge=1, description="passes in flight at once")


class Replicas(Strict):
    """Placement and number of replicas, passed to Ray Serve unchanged, under its own names."""

    renamed_keys: ClassVar[Mapping[str, str]] = {"stuck_after_s": "max_pass_s"}

    ray_actor_options: dict[str, Any] = Field(
        default_factory=lambda: {"num_cpus": 0.1},
        description="for example {num_gpus: 0.25}; see Ray Serve's documentation",
    )
    autoscaling_config: dict[str, Any] = Field(
        default_factory=lambda: {"min_replicas": 1, "max_replicas": 1},
        description="Ray Serve's autoscaling_config",
    )
    max_ongoing_requests: int = Field(64, ge=1)
    max_queued_requests: int = Field(512, ge=-1, description="-1: no bound")
    graceful_shutdown_timeout_s: float = Field(20.0, ge=0)
    health_check_period_s: float = Field(10.0, gt=0)
    health_check_timeout_s: float = Field(30.0, gt=0)
    max_pass_s: float = Field(
        120.0, gt=0, description="maximum time of one engine pass; beyond it a replica is unhealthy"
    )

    @property
    def scales_to_zero(self) -> bool:
        """Whether there may be no replica until a request arrives."""
        return int(self.autoscaling_config.get("min_replicas", 1)) == 0

    def cost(self, on_gpus: bool) -> float:
        """Units of `ScalingSettings.budget` that one replica takes: GPUs, or CPU slots."""
        options = self.ray_actor_options
        units = options.get("num_gpus") if on_gpus else options.get("num_cpus", 1)
        return max(float(units or 0), _MIN_COST)

    @property
    def initial_replicas(self) -> int:
        """Number of replicas before the first request."""
        least = int(self.autoscaling_config.get("min_replicas", 1))
        return int(self.autoscaling_config.get("initial_replicas", least))

    @property
    def max_replicas(self) -> int:
        return int(self.autoscaling_config.get("max_replicas", 1))


class EncoderSettings(Replicas):
    compute: Compute = Compute()
    batching: Batching = Batching()


class DecoderSettings(Replicas):
    compute: Compute = Compute()
    batching: Batching = Batching(max_batch_size=32, batch_wait_timeout_s=0.002)


class VariantSettings(Strict):
    """A named way to segment: a model of the registry and the placement of its components."""

    model: str = Field(description="a name in the model registry")
    description: str = ""
    layout: Literal["split", "fused"] = Field(
        "split",
        description="split: encoder and decoder replicas scale independently; "
        "fused: both in the decoder's replica (the encoder's placement is then unused)",
    )
    reference: str | None = Field(
        None,
        description="the variant with the embeddings and masks to reproduce, such as its "
        "full-precision original, which also serves its requests if it is unavailable; null: "
        "the model's own library",
    )
    encoder: EncoderSettings = EncoderSettings()
    decoder: DecoderSettings = DecoderSettings()

    @property
    def encoder_compute(self) -> Compute:
        """Where the encoder runs: in the fused layout where the decoder does."""
        return self.decoder.compute if self.layout == "fused" else self.encoder.compute

    @property
    def components(self) -> tuple[Replicas, ...]:
        """The deployed components."""
        return (self.decoder,) if self.layout == "fused" else (self.encoder, self.decoder)

    @property
    def scales_to_zero(self) -> bool:
        """Whether a component may have no replica until a request arrives."""
        return any(component.scales_to_zero for component in self.components)


class ProposalsSettings(Replicas):
    threads: int = Field(2, ge=1)
    detector: str | None = Field("efficientdet_lite2", description="registry name; null: none")


class OpenClipSettings(Strict):
    """An `open-clip-torch` model: the registry's, or any architecture with weights of its own."""

    model: str = Field(
        "open_clip_vit_b_32", description="registry name; not used where `pretrained` is set"
    )
    architecture: str = Field("ViT-B-32", description="of open_clip; goes with `pretrained`")
    pretrained: str = Field(
        "",
        description="a tag of open_clip, or the path of a local safetensors checkpoint; "
        "empty: the weights of `model`",
    )
    sha256: str | None = Field(
        None, pattern=r"^[0-9a-f]{64}$", description="of the local checkpoint"
    )
    model_config_path: str | None = Field(
        None, description="an open_clip architecture file, for architectures it does not ship"
    )
    templates: tuple[str, ...] = (
        "a photo of a {}",
        "a cropped photo of the {}",
        "a close-up photo of a {}",
        "{}",
    )
    negatives: tuple[str, ...] = (
        "background",
        "a texture",
        "a plain surface",
        "an object",
        "something else",
    )
    threshold: float = Field(0.5, ge=0, le=1)
    proposals: ProposalSource = ProposalSource.GRID
    batch_size: int = Field(32, ge=1, description="crops in one pass")


class LabelsSettings(Strict):
    """The detector's labels matched to the text by sentence embeddings."""

    model: str = Field("minilm_l6_v2", description="registry name of the sentence model")
    names: tuple[str, ...] | None = Field(
        None, min_length=1, description="the detector's labels; null: COCO's 80"
    )
    threshold: float = Field(0.5, ge=0, le=1)


class TextSettings(Replicas):
    engine: Literal["auto", "open_clip", "labels"] = "auto"
    compute: Compute = Compute()
    open_clip: OpenClipSettings = OpenClipSettings()
    labels: LabelsSettings = LabelsSettings()


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
        True, description="start the second variant, if scaled to zero, for later requests"
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
    """API keys, rate limits, browsers.  The rate is that of all callers without keys together."""

    allowed_origins: tuple[str, ...] = Field(
        (),
        description="origins such as `https://app.example.org` of which the pages may call the "
        "service from a browser (CORS); `*`: all; by default none",
    )

    api_keys: tuple[ApiKey, ...] = Field(
        (), description="if there are any, everything but the probes requires one"
    )

    @field_validator("allowed_origins")
    @classmethod
    def _origins(cls, origins: tuple[str, ...]) -> tuple[str, ...]:
        if not all(origin == "*" or _ORIGIN.fullmatch(origin) for origin in origins):
            raise ValueError('an origin is "*", or scheme, host and port: https://example.org:8443')
        return origins

    @model_validator(mode="after")
    def _distinct(self) -> SecuritySettings:
        for what in ("name", "sha256"):
            if len({getattr(key, what) for key in self.api_keys}) < len(self.api_keys):
                raise ValueError(f"security.api_keys has two entries of the same {what}")
        return self

    def exposure_warning(self, host: str | None) -> str | None:
        """The warning to log at startup if anybody may use the service; None: access is restricted.

        Args:
            host: address or host name that HTTP is bound to; None: unknown.
        """
        if self.api_keys or (host is not None and _is_loopback(host)):
            return None
        bound = "an address that ingress.http_host does not name" if host is None else host
        return (
            f"HTTP is bound to {bound} and no API keys are set (security.api_keys): any client "
            "that can reach this address can use the service. Create a key with `python -m "
            "serve_app key NAME`, or bind http_options.host to 127.0.0.1 behind a proxy that "
            "authenticates."
        )


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host.lower() == "localhost"


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


class GraphSettings(Strict):
    """All settings of a graph.  ``serve_app.core.settings`` documents each field."""

    renamed_keys: ClassVar[Mapping[str, str]] = {"ledger": "measurements", "quantised": "quantized"}

    registry: str | None = Field(None, description="a registry file; null: configs/models.yaml")
    weights_dir: str | None = Field(
        None, description="folder of the weights; null: $SAM_SERVE_WEIGHTS or the user's cache"
    )
    offline: bool = Field(False, description="never fetch weights, only load existing ones")
    variants: dict[str, VariantSettings] = Field(
        default_factory=lambda: {"fast": VariantSettings(model="vit_t")}, min_length=1
    )
    capabilities: tuple[str, ...] = Field(
        (), description="modules of further capabilities, each with a `CAPABILITY`"
    )
    quantized: QuantizedSettings = QuantizedSettings()
    router: RouterSettings = RouterSettings()
    ingress: IngressSettings = IngressSettings()
    proposals: ProposalsSettings = ProposalsSettings()
    text: TextSettings | None = TextSettings()
    cache: CacheSettings = CacheSettings()
    measurements: MeasurementsSettings = MeasurementsSettings()
    scaling: ScalingSettings = ScalingSettings()
    limits: Limits = Limits()
    security: SecuritySettings = SecuritySettings()

    @property
    def on_gpus(self) -> bool:
        """Whether the budget is in GPUs: some component of a variant requests one."""
        return any(
            float(component.ray_actor_options.get("num_gpus") or 0) > 0
            for variant in self.variants.values()
            for component in variant.components
        )

    def _check_budget(self) -> None:
        """Check that all minima and any one variant scaled from zero fit into the budget."""
        budget = self.scaling.budget
        if budget is None:
            return
        on_gpus = self.on_gpus
        needed, started = 0.0, [0.0]
        for variant in self.variants.values():
            needed += sum(c.cost(on_gpus) * c.initial_replicas for c in variant.components)
            started.append(sum(c.cost(on_gpus) for c in variant.components if c.scales_to_zero))
        needed += max(started)
        if needed > budget + 1e-9:
            raise ValueError(
                f"scaling.budget {budget:g} is less than the minimum replicas and one variant "
                f"scaled from zero take together: {needed:g}"
            )

    @model_validator(mode="after")
    def _consistent(self) -> GraphSettings:
        for name in self.variants:
            if name == "auto" or not re.match(VARIANT_NAME, name):
                raise ValueError(f"{name!r} is not a valid name of a variant")
        if self.router.default not in self.variants:
            raise ValueError("router.default must name one of the variants")
        for alias, variant in self.router.aliases.items():
            if alias in self.variants or alias == "auto" or variant not in self.variants:
                raise ValueError("router.aliases must give new names to deployed variants")
        if self.router.cascade_to is not None and (
            self.router.cascade_to not in self.variants
            or self.router.cascade_to == self.router.default
        ):
            raise ValueError("router.cascade_to must name a variant other than the default")
        self._check_budget()
        for name, described in self.variants.items():
            reference = described.reference
            if reference is not None and (reference not in self.variants or reference == name):
                raise ValueError(f"the reference of {name} must be another variant")
        if self.ingress.max_ongoing_requests <= self.limits.most_requests:
            raise ValueError(
                "ingress.max_ongoing_requests must be above the sum of "
                "limits.max_concurrent_requests, max_arriving_requests and max_lingering_requests: "
                "otherwise Serve queues requests that the service would reject, and probes as well"
            )
        if self.cache.redis_url is None and self.ingress.max_replicas > 1:
            raise ValueError(
                "several ingress replicas need cache.redis_url: without it only the replica that "
                "received an image knows its image_id"
            )
        return self
