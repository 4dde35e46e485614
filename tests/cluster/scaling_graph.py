"""The graph's variants with fake models of fixed service time, for tests of scaling.

    ingress ─┬─▶ fast-decoder ─────▶ fast-encoder
             └─▶ accurate-decoder ─▶ accurate-encoder

Replicas, batches, figures and policy are the real ones; a pass of a model is a sleep.
"""

import uuid
from pathlib import Path
from typing import Any

import numpy as np
from ray.serve import Application

from graphs.nodes import deployed
from serve_app.core.inference import DecodeOptions
from serve_app.core.measurements import Profile
from serve_app.core.settings import GraphSettings
from serve_app.core.types import Prompt
from serve_app.deployments.calls import RemotePredictor
from serve_app.deployments.decoder import DecoderReplica
from serve_app.deployments.engines import EncoderReplica
from serve_app.scaling.reports import profile_report

from ..fakes.engines import FakeSource, ServiceTimes

ROOT = Path(__file__).resolve().parents[2]
POLICY = "serve_app.deployments.autoscaling:BudgetPolicy"
PASS_MS = {"fast": 400.0, "accurate": 800.0}
"""Of an encoder, whatever is in it."""
BATCH = {"fast": 2, "accurate": 4}
"""So either variant's encoder embeds five images a second."""
DECODE_MS = 5.0
PROFILES = {
    "fast": Profile({1: PASS_MS["fast"], BATCH["fast"]: PASS_MS["fast"]}, {1: 5.0, 16: 5.0})
}
"""The measured variants, as the ingress reports them."""
SLOT = 0.25
"""CPUs, in Ray's bookkeeping, of an encoder or decoder."""
QUICK = {
    "upscale_delay_s": 0,
    "downscale_delay_s": 0,
    "look_back_period_s": 2,
    "metrics_interval_s": 0.5,
}
_PIXELS = np.zeros((4, 4, 3), np.uint8)


class GarbageEncoder(EncoderReplica):
    """Embeds as the others do; its autoscaling figures are nonsense, and more so each time."""

    def record_autoscaling_stats(self) -> dict[str, Any]:
        self.calls = getattr(self, "calls", 0) + 1
        nan, inf = float("nan"), float("inf")
        names = ("arrivals_per_s", "oldest_s", "batch_fill", "pass_ms", "pass_items", "hit_rate")
        odd: list[Any] = [nan, inf, -inf, -1e30, 1e300, 10**400]
        if self.calls > 2:  # Serve looks at the types of the first answer alone
            odd += ["many", None, [1.0]]
        return {name: odd[(i + self.calls) % len(odd)] for i, name in enumerate(names)}


class Ingress:
    """Each request is a new image with one prompt."""

    def __init__(self, decoders: dict[str, Any]) -> None:
        self._predictors = {name: RemotePredictor(handle) for name, handle in decoders.items()}

    async def ask(self, variant: str) -> None:
        prompts = (Prompt(point_coords=[[1, 1]], point_labels=[1]),)
        image_id = f"4x4-{uuid.uuid4().hex * 2}"
        await self._predictors[variant].predict(image_id, _PIXELS, prompts, DecodeOptions())

    def record_autoscaling_stats(self) -> dict[str, float]:
        return profile_report(PROFILES)


def graph(
    scaling: dict[str, Any], autoscaling: dict[str, Any], slot: float = SLOT
) -> dict[str, Any]:
    """Settings: up to three encoders of either variant; *accurate* sleeps until it is asked."""

    def half(least: int, most: int, batch: int) -> dict[str, Any]:
        return {
            "ray_actor_options": {"num_cpus": slot},
            "autoscaling_config": {"min_replicas": least, "max_replicas": most, **autoscaling},
            "batching": {"max_batch_size": batch, "batch_wait_timeout_s": 0.01},
        }

    variants = {
        name: {
            "model": "vit_t",
            "encoder": half(least, 3, BATCH[name]),
            "decoder": half(least, 1, 16),
        }
        for name, least in (("fast", 1), ("accurate", 0))
    }
    small = {"min_replicas": 1, "max_replicas": 1}
    return {
        "variants": variants,
        "ingress": {"ray_actor_options": {"num_cpus": 0.05}, "autoscaling_config": small},
        # There is no file: the ingress reports `PROFILES`, replicas of *accurate* what they see.
        "measurements": {"path": "/nonexistent/ledger.json"},
        "scaling": scaling,
    }


def application(
    name: str, settings: dict[str, Any], policy: bool, garbage: bool = False
) -> dict[str, Any]:
    """An application of a Serve config."""
    config: dict[str, Any] = {
        "name": name,
        "route_prefix": f"/{name}",
        "import_path": f"{__name__}:{'build_garbage' if garbage else 'build'}",
        "runtime_env": {"env_vars": {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}},
        "args": settings,
    }
    if policy:
        config["autoscaling_policy"] = {
            "policy_function": POLICY,
            "policy_kwargs": {"graph": settings},
        }
    return config


def build(settings: GraphSettings) -> Application:
    """The application builder."""
    return _build(settings, EncoderReplica)


def build_garbage(settings: GraphSettings) -> Application:
    """The same with encoders whose figures are nonsense."""
    return _build(settings, GarbageEncoder)


def _build(settings: GraphSettings, encoder: type[EncoderReplica]) -> Application:
    decoders = {}
    for name, variant in settings.variants.items():
        times = {"encode_ms": PASS_MS[name], "decode_ms": DECODE_MS, "embedding_bytes": 0}
        source = FakeSource(times=ServiceTimes.model_validate(times))
        images = deployed(encoder, f"{name}-encoder", variant.encoder).bind(
            variant.model, variant.encoder, source
        )
        decoders[name] = deployed(DecoderReplica, f"{name}-decoder", variant.decoder).bind(
            variant, settings.cache, source, images
        )
    application: Application = deployed(Ingress, "ingress", settings.ingress).bind(decoders)
    return application
