"""The argument of the graph builders, validated: an unknown or absurd setting is refused whole.

`configs/*.yaml` hold these values under ``args``.  Devices, dtypes, threads and memory shares
are said there and never guessed from the machine.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from serve_app.core.limits import Limits
from serve_app.core.types import ProposalSource

log = logging.getLogger(__name__)

_LEAST_COST = 1e-6

VARIANT_NAME = r"^[a-z0-9][a-z0-9_.-]{0,31}$"


class Strict(BaseModel):
    # A fault's text tells where it is and not what was there: that may be a password.
    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)


EngineName = Literal["torch", "compiled", "openvino", "onnxruntime"]


class Compute(Strict):
    """On what a model runs."""

    device: str = Field("cpu", pattern=r"^(cpu|cuda(:\d+)?)$", description="torch device")
    dtype: Literal["float32", "float16", "bfloat16"] = Field(
        "float32", description="precision of the model's arithmetic"
    )
    engine: EngineName | None = Field(
        None,
        description="what runs a segmentation model's encoder, one of its `engines` in the "
        "registry; null: the first of them that suits the device",
    )
    threads: int = Field(1, ge=1, description="CPU threads of one replica")
    memory_fraction: float | None = Field(
        None, gt=0, le=1, description="share of the GPU's memory this replica may take"
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
    """How requests are collected into one pass of the model."""

    max_batch_size: int = Field(8, ge=1, description="items in one pass")
    batch_wait_timeout_s: float = Field(0.005, ge=0, description="longest wait for a fuller batch")
    max_concurrent_batches: int = Field(1, ge=1, description="passes under way at once")


class Replicas(Strict):
    """Where and how many: passed on to Ray Serve as they are, under its own names."""

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
    stuck_after_s: float = Field(
        120.0, gt=0, description="longest pass of an engine; one that takes more is unhealthy"
    )

    @property
    def sleeps(self) -> bool:
        """Whether there may be no replica, until somebody asks."""
        return int(self.autoscaling_config.get("min_replicas", 1)) == 0

    def cost(self, on_gpus: bool) -> float:
        """Units of `ScalingSettings.budget` that one replica takes: GPUs, or CPU slots."""
        options = self.ray_actor_options
        asked = options.get("num_gpus") if on_gpus else options.get("num_cpus", 1)
        return max(float(asked or 0), _LEAST_COST)

    @property
    def initial_replicas(self) -> int:
        """How many there are before anybody has asked."""
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
    """A named way to segment: a model of the registry and where its halves run."""

    model: str = Field(description="a name in the model registry")
    description: str = ""
    layout: Literal["split", "fused"] = Field(
        "split",
        description="split: encoder and decoder replicas scale apart; "
        "fused: both in the decoder's replica (the encoder's placement is then unused)",
    )
    reference: str | None = Field(
        None,
        description="a variant whose embeddings and masks this one should give, such as its "
        "full-precision original, which answers for it where no int8 model was made; null: the "
        "model's own library",
    )
    encoder: EncoderSettings = EncoderSettings()
    decoder: DecoderSettings = DecoderSettings()

    @property
    def halves(self) -> tuple[Replicas, ...]:
        """What is deployed of it."""
        return (self.decoder,) if self.layout == "fused" else (self.encoder, self.decoder)

    @property
    def sleeps(self) -> bool:
        """Whether a half of it may have no replica, until somebody asks."""
        return self.decoder.sleeps or (self.layout == "split" and self.encoder.sleeps)


class QuantizedSettings(Strict):
    """What an int8 model must be worth, by the figures it was made with, to be deployed."""

    least_speedup: float = Field(
        1.1, gt=0, description="times that its encoder must be faster than the original's"
    )
    most_iou_loss: float = Field(
        0.005, ge=0, le=1, description="mean IoU that it may lose against the original"
    )


class RouterSettings(Strict):
    """What ``auto`` and other names mean."""

    default: str = Field("fast", description="the variant of ``auto``")
    aliases: dict[str, str] = Field(
        default_factory=dict, description="names answered by a variant of another name"
    )
    cascade_to: str | None = Field(
        None,
        description="the variant that answers again what the default was unsure of; null: none",
    )
    cascade_share: float = Field(
        0.4,
        gt=0,
        le=1,
        description="share of images to be encoded a second time, on images like the ledger's",
    )
    cascade_max_ms: float = Field(
        10_000.0,
        gt=0,
        description="longest second answer that is waited for where the request gives no "
        "max_latency_ms",
    )
    cascade_wakes: bool = Field(
        True,
        description="a wish to ask a sleeping variant wakes it for those who come after",
    )

    def among(self, names: Sequence[str]) -> RouterSettings:
        """The same for a part of the variants; the first is the default if the usual is not."""
        return self.model_copy(
            update={
                "default": self.default if self.default in names else names[0],
                "aliases": {a: name for a, name in self.aliases.items() if name in names},
                "cascade_to": self.cascade_to if self.cascade_to in names else None,
            }
        )


class LedgerSettings(Strict):
    """Where the measured figures are."""

    path: str | None = Field(
        None, description="a ledger file; null: $SAM_SERVE_LEDGER or the user's cache"
    )
    trust_host: bool = Field(
        False,
        description="use it although it was measured elsewhere: for a cluster whose replicas run "
        "on nodes of another kind than the one that builds the graph",
    )


class ScalingSettings(Strict):
    """The knobs of the application's scaling policy (`serve_app.scaling.policy`)."""

    budget: float | None = Field(
        None,
        gt=0,
        description="units that all encoders and decoders share: GPUs where replicas ask for "
        "num_gpus, else CPU slots (num_cpus); null: no bound beyond max_replicas",
    )
    goal_ms: float = Field(
        1000.0, gt=0, description="time that an item should spend in one pool, waiting included"
    )
    utilisation: float = Field(
        0.75, gt=0, le=1, description="share of its best rate at which a replica should run"
    )
    surge: float = Field(
        2.0,
        ge=1,
        description="times the present load that running replicas should bear, as far as the "
        "reserve goes: what comes suddenly comes before any cold start is over",
    )
    reserve: float = Field(
        0.9,
        ge=0,
        le=1,
        description="share of the budget that may be filled with replicas for a surge; 0: none, "
        "for clusters that pay by use",
    )
    hold_s: float = Field(
        300.0,
        gt=0,
        description="seconds for which fewer replicas must have sufficed before any is stopped; "
        "where the budget is short, those idle for half a minute give way",
    )


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
    threshold: float = Field(0.5, ge=0, le=1)


class TextSettings(Replicas):
    engine: Literal["auto", "open_clip", "labels"] = "auto"
    compute: Compute = Compute()
    open_clip: OpenClipSettings = OpenClipSettings()
    labels: LabelsSettings = LabelsSettings()


class CacheSettings(Strict):
    """Embeddings and images kept for later prompts."""

    embedding_bytes: int = Field(512 * 2**20, ge=0, description="memory tier of one replica")
    image_bytes: int = Field(128 * 2**20, ge=0, description="uploaded files kept by the ingress")
    redis_url: str | None = Field(
        None,
        # It may hold a password.
        repr=False,
        description="a shared second tier, redis://, rediss:// (TLS) or unix://; null: none",
    )
    redis_ttl_s: int = Field(3600, ge=1, description="for how long a value is kept there")
    redis_timeout_s: float = Field(
        0.05,
        gt=0,
        le=1,
        description="longest lookup, which is what a Redis that hangs adds to a request; what "
        "comes later is a miss.  4 MiB, an embedding of vit_t, take 5 ms on one idle machine, and "
        "34 ms of a wire of 1 Gbit/s alone",
    )
    redis_connections: int = Field(
        2,
        ge=1,
        description="lookups of one replica at once; two more connections write and ping.  Few, "
        "since large values that are read side by side are all late together",
    )
    redis_queue_bytes: int = Field(
        64 * 2**20, ge=0, description="values that wait to be written; more are dropped"
    )
    redis_value_bytes: int = Field(
        32 * 2**20, gt=0, description="largest value written, and most that is read of one"
    )
    redis_rest_s: float = Field(
        2.0,
        gt=0,
        le=8,
        description="after three failures in a row Redis is only pinged, so often, until it "
        "answers",
    )

    @field_validator("redis_url")
    @classmethod
    def _known_scheme(cls, url: str | None) -> str | None:
        if url is not None and not url.startswith(("redis://", "rediss://", "unix://")):
            raise ValueError("cache.redis_url must begin with redis://, rediss:// or unix://")
        return url


class Rate(Strict):
    """How many requests a caller may make; for each ingress replica."""

    requests_per_minute: int | None = Field(
        None, ge=1, description="each image of a batch counts as one; null: no bound"
    )
    burst: int = Field(20, ge=1, description="requests that may come at once after a quiet time")


class ApiKey(Rate):
    """Who may ask.  ``python -m serve_app key NAME`` makes a key and its entry."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.@-]{0,63}$", description="in the audit log")
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$", description="of the key, which is nowhere kept")


class SecuritySettings(Rate):
    """Who may ask, and how much.  The rate is that of all callers without keys together."""

    api_keys: tuple[ApiKey, ...] = Field(
        (), description="if there is any, all but the probes needs one"
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
        description="replicas beyond their number while they are replaced: with 100 the old ones "
        "answer until the new ones can; takes num_cpus for both",
    )
    drain_file: str | None = Field(
        None,
        description="while this file exists nothing new is begun and /readyz says so; for whoever "
        "stops a node in good order",
    )
    # More than `Limits.most_requests`, so that refusals come from here with their code.
    max_ongoing_requests: int = Field(256, ge=1)
    request_timeout_s: float = Field(
        120.0, gt=0, description="longest time for one request; less than the proxy's own"
    )


RENAMED_KEYS = {"quantised": "quantized"}
"""Former names of `GraphSettings`' keys, which are still accepted, and the present ones."""


class GraphSettings(Strict):
    """All of the graph.  ``serve_app.core.settings`` documents each field."""

    registry: str | None = Field(None, description="a registry file; null: configs/models.yaml")
    weights_dir: str | None = Field(
        None, description="where weights are kept; null: $SAM_SERVE_WEIGHTS or the user's cache"
    )
    offline: bool = Field(False, description="never fetch weights, only load what is there")
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
    ledger: LedgerSettings = LedgerSettings()
    scaling: ScalingSettings = ScalingSettings()
    limits: Limits = Limits()
    security: SecuritySettings = SecuritySettings()

    @model_validator(mode="before")
    @classmethod
    def _renamed_keys(cls, values: Any) -> Any:
        """Accept the former names of keys for one version, with a warning."""
        for old, new in RENAMED_KEYS.items():
            if isinstance(values, dict) and old in values and new not in values:
                log.warning("the settings key %r is now called %r; rename it", old, new)
                values = {(new if key == old else key): v for key, v in values.items()}
        return values

    @property
    def on_gpus(self) -> bool:
        """Whether the budget is in GPUs: some half of a variant asks for one."""
        return any(
            float(half.ray_actor_options.get("num_gpus") or 0) > 0
            for variant in self.variants.values()
            for half in variant.halves
        )

    def _check_budget(self) -> None:
        """Everyone's minimum and one sleeping variant must fit: else it could never answer."""
        budget = self.scaling.budget
        if budget is None:
            return
        least, woken = 0.0, [0.0]
        for variant in self.variants.values():
            least += sum(half.cost(self.on_gpus) * half.initial_replicas for half in variant.halves)
            woken.append(sum(half.cost(self.on_gpus) for half in variant.halves if half.sleeps))
        if least + max(woken) > budget + 1e-9:
            raise ValueError(
                f"scaling.budget {budget:g} does not hold the least replicas and a woken variant: "
                f"that is {least + max(woken):g}"
            )

    @model_validator(mode="after")
    def _consistent(self) -> GraphSettings:
        import re

        for name in self.variants:
            if name == "auto" or not re.match(VARIANT_NAME, name):
                raise ValueError(f"{name!r} is no name for a variant")
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
                "else Serve holds back what the service would refuse, and probes with it"
            )
        if self.cache.redis_url is None and self.ingress.max_replicas > 1:
            raise ValueError(
                "several ingress replicas need cache.redis_url: without it an image_id is known "
                "only to the replica that saw the image"
            )
        return self
