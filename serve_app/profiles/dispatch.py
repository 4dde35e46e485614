"""The router of a plan."""

from __future__ import annotations

from collections.abc import Mapping

from serve_app.core.ports import Predictor
from serve_app.core.settings import GraphSettings
from serve_app.profiles.plan import Plan
from serve_app.routing.dispatcher import Dispatcher
from serve_app.routing.load_tracker import Capacity


def capacities(settings: GraphSettings, *, in_process: bool) -> dict[str, Capacity]:
    """How each variant is deployed.

    Args:
        in_process: one encoder and one decoder each; else the configured initial replicas.
    """
    found = {}
    for name, variant in settings.variants.items():
        decoders = 1 if in_process else variant.decoder.initial_replicas
        one_pool = in_process or variant.layout == "fused"
        found[name] = Capacity(
            encoders=decoders if one_pool else variant.encoder.initial_replicas,
            decoders=decoders,
            encoder_batch=variant.encoder.batching.max_batch_size,
            decoder_batch=variant.decoder.batching.max_batch_size,
            embeddings=settings.cache.embedding_bytes,
            shared=settings.cache.redis_url is not None,
        )
    return found


def build_dispatcher(
    plan: Plan, predictors: Mapping[str, Predictor], *, in_process: bool
) -> Dispatcher:
    """The router of the variants that have a predictor; ``in_process`` as in `capacities`."""
    deployed = capacities(plan.settings, in_process=in_process)
    return Dispatcher(
        plan.settings.router.among(list(predictors)),
        {name: deployed[name] for name in predictors},
        plan.measurements,
        {name: predictor.scale_from_zero for name, predictor in predictors.items()},
    )
