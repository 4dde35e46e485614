"""The ingress: HTTP and Python calls in, `SegmentationFlow` over handles.  Never imports torch."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

from fastapi import FastAPI
from ray import serve
from ray.serve.handle import DeploymentHandle

from serve_app.api.app import create_app
from serve_app.cache.shared import shared_tier
from serve_app.deployments.handles import RemotePredictor, RemoteProposer, RemoteTextScorer
from serve_app.deployments.metrics import cluster_metrics
from serve_app.domain.settings import GraphSettings
from serve_app.domain.types import (
    EmbedResult,
    RgbArray,
    SegmentRequest,
    SegmentResult,
    VariantInfo,
)
from serve_app.flow import SegmentationFlow
from serve_app.steps.images import ImageStore


@serve.ingress()
class IngressReplica:
    """Answers HTTP through `serve_app.api` and Python callers through its methods."""

    def __init__(
        self,
        settings: GraphSettings,
        variants: Mapping[str, VariantInfo],
        decoders: Mapping[str, DeploymentHandle[Any]],
        proposals: DeploymentHandle[Any],
        text: DeploymentHandle[Any] | None,
    ) -> None:
        self._limits = settings.limits
        self._flow = SegmentationFlow(
            images=ImageStore(
                settings.limits, settings.cache.image_bytes, shared_tier(settings.cache)
            ),
            variants=variants,
            predictors={name: RemotePredictor(handle) for name, handle in decoders.items()},
            proposer=RemoteProposer(proposals),
            scorer=None if text is None else RemoteTextScorer(text),
            default_variant=settings.router.default,
            limits=settings.limits,
        )

    def __serve_build_asgi_app__(self) -> FastAPI:
        """Called by Serve in the replica, after the constructor."""
        return create_app(
            self._flow, self._limits, metrics=cluster_metrics, version=version("sam-serve")
        )

    async def segment(self, request: SegmentRequest) -> SegmentResult:
        """Answer one request of a Python caller."""
        return await self._flow.segment(request)

    async def embed(self, image: bytes | RgbArray | str, variant: str = "auto") -> EmbedResult:
        """Embed an image for a Python caller."""
        return await self._flow.embed(image, variant)

    async def models(self) -> Mapping[str, Any]:
        """What is deployed."""
        return await self._flow.models()
