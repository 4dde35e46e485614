"""Settings of replicas: placement, batching, variants, proposals, text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import Field, model_validator

from serve_app.core.settings.base import Strict
from serve_app.core.types import ProposalSource

_MIN_COST = 1e-6

EngineName = Literal["torch", "compiled", "openvino", "onnxruntime"]


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
        120.0,
        gt=0,
        description="maximum time of one engine pass; beyond it a replica is unhealthy",
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
    threshold: float = Field(0.5, ge=0, le=1)


class TextSettings(Replicas):
    engine: Literal["auto", "open_clip", "labels"] = "auto"
    compute: Compute = Compute()
    open_clip: OpenClipSettings = OpenClipSettings()
    labels: LabelsSettings = LabelsSettings()
