"""All settings of a graph, and the checks across them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import ClassVar

from pydantic import Field, model_validator

from serve_app.core.limits import Limits
from serve_app.core.settings.base import VARIANT_NAME, Strict
from serve_app.core.settings.replicas import ProposalsSettings, TextSettings, VariantSettings
from serve_app.core.settings.service import (
    CacheSettings,
    IngressSettings,
    MeasurementsSettings,
    QuantizedSettings,
    RouterSettings,
    ScalingSettings,
    SecuritySettings,
)


class GraphSettings(Strict):
    """All settings of a graph.  ``serve_app.core.settings`` documents each field."""

    renamed_keys: ClassVar[Mapping[str, str]] = {
        "ledger": "measurements",
        "quantised": "quantized",
    }

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
