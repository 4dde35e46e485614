"""Deployments with their settings, bound by the graphs."""

from __future__ import annotations

from typing import Any

from ray import serve
from ray.serve import Deployment
from ray.serve.config import RequestRouterConfig

from serve_app.core.settings import IngressSettings, Replicas
from serve_app.deployments.compat.affinity import affinity
from serve_app.deployments.decoder import DecoderReplica
from serve_app.deployments.engines import EncoderReplica, ProposalsReplica, TextReplica
from serve_app.deployments.ingress import IngressReplica
from serve_app.models.factory import ModelSource
from serve_app.profiles.plan import Plan

Node = Any  # what .bind() returns; Ray replaces it by a handle where it is an argument


def deployed(
    replica: type, name: str, replicas: Replicas, router: RequestRouterConfig | None = None
) -> Deployment:
    """A replica class with its settings, as a Serve deployment; ``router`` None: Ray's own."""
    # Only the ingress is doubled during updates: a full GPU has no room for a second replica.
    surge = replicas.max_surge_percent if isinstance(replicas, IngressSettings) else 0
    decorate = serve.deployment(
        name=name,
        ray_actor_options=dict(replicas.ray_actor_options),
        autoscaling_config=dict(replicas.autoscaling_config),
        max_ongoing_requests=replicas.max_ongoing_requests,
        max_queued_requests=replicas.max_queued_requests,
        graceful_shutdown_timeout_s=replicas.graceful_shutdown_timeout_s,
        health_check_period_s=replicas.health_check_period_s,
        health_check_timeout_s=replicas.health_check_timeout_s,
        request_router_config=router or RequestRouterConfig(),
        max_surge_percent=surge,
    )
    deployment: Deployment = decorate(replica)
    return deployment


def variant_node(plan: Plan, name: str) -> Node:
    """A variant's decoder, with its encoder behind it (split) or inside it (fused)."""
    settings, variant = plan.settings, plan.settings.variants[name]
    source = ModelSource.of(settings)
    encoder: Node = None
    if variant.layout == "split":
        encoder = deployed(EncoderReplica, f"{name}-encoder", variant.encoder).bind(
            variant.model, variant.encoder, source
        )
    # Requests on an image go to the replica that has its embedding.
    router = affinity(variant.decoder)
    return deployed(DecoderReplica, f"{name}-decoder", variant.decoder, router).bind(
        variant, settings.cache, source, encoder
    )


def proposals_node(plan: Plan) -> Node:
    """Candidate regions."""
    settings = plan.settings
    return deployed(ProposalsReplica, "proposals", settings.proposals).bind(
        settings.proposals, ModelSource.of(settings)
    )


def text_node(plan: Plan) -> Node:
    """Text scoring; None if it is disabled."""
    settings = plan.settings
    if settings.text is None:
        return None
    return deployed(TextReplica, "text", settings.text).bind(
        settings.text, ModelSource.of(settings)
    )


def ingress_node(plan: Plan, decoders: dict[str, Node], proposals: Node, text: Node) -> Node:
    """The ingress in front of everything else."""
    return deployed(IngressReplica, "ingress", plan.settings.ingress).bind(
        plan, decoders, proposals, text
    )
