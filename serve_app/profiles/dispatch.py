"""From a configuration and its ledger to what the router works with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from serve_app.core.measurements import Measurements
from serve_app.core.ports import Predictor
from serve_app.core.settings import GraphSettings
from serve_app.core.types import VariantInfo
from serve_app.models.registry import Registry
from serve_app.routing.dispatcher import Dispatcher
from serve_app.routing.load_tracker import Capacity
from serve_app.routing.variants import variant_info


def capacities(settings: GraphSettings, *, awake: bool) -> dict[str, Capacity]:
    """How each variant is deployed.

    Args:
        awake: all run (in process); else as many replicas as the configuration starts with.
    """
    found = {}
    for name, variant in settings.variants.items():
        decoders = 1 if awake else variant.decoder.initial_replicas
        fused = variant.layout == "fused"
        encoders = decoders if awake or fused else variant.encoder.initial_replicas
        found[name] = Capacity(
            encoders=encoders,
            decoders=decoders,
            encoder_batch=variant.encoder.batching.max_batch_size,
            decoder_batch=variant.decoder.batching.max_batch_size,
            embeddings=settings.cache.embedding_bytes,
            shared=settings.cache.redis_url is not None,
        )
    return found


def build_dispatcher(
    settings: GraphSettings,
    ledger: Measurements,
    predictors: Mapping[str, Predictor],
    *,
    awake: bool,
) -> Dispatcher:
    """The router of the variants that have a predictor."""
    names = list(predictors)
    deployed = capacities(settings, awake=awake)
    starters = {name: predictors[name].scale_from_zero for name in names}
    return Dispatcher(
        settings.router.among(names),
        {name: deployed[name] for name in names},
        ledger,
        starters,
    )


def variant_infos(
    settings: GraphSettings, names: Sequence[str], registry: Registry, ledger: Measurements
) -> dict[str, VariantInfo]:
    """What ``/v1/models`` tells of each variant, with its figures or why there are none.

    Raises:
        ValueError: see `variant_info`.
    """
    infos = {}
    for name in names:
        info = variant_info(name, settings.variants[name], registry)
        infos[name] = replace(info, details={**info.details, **_figures(name, ledger)})
    return infos


def _figures(name: str, ledger: Measurements) -> dict[str, Any]:
    entry = ledger.entries.get(name)
    if entry is None:
        return {"measured": None, "not_measured": ledger.ignored.get(name, "not measured")}
    told = {"model", "weights_hash", "preprocessing", "device", "dtype", "engine"}
    figures: dict[str, Any] = {
        "measured": entry.model_dump(mode="json", exclude=told, exclude_none=True)
    }
    if name in ledger.dominated:
        figures["dominated_by"] = ledger.dominated[name]
    return figures
