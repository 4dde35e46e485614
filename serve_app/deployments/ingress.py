"""The ingress: HTTP and Python requests, served by `SegmentationFlow` over handles; no torch."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from ray import serve
from ray.serve.handle import DeploymentHandle

from serve_app.cache.shared import shared_tier
from serve_app.capabilities import SegmentRequest, load_capabilities
from serve_app.connectors.article import article_router
from serve_app.core.errors import InvalidImage, InvalidRequest
from serve_app.core.request import AUTO, EmbedRequest
from serve_app.core.settings import GraphSettings
from serve_app.core.types import EmbedResult, SegmentResult
from serve_app.core.version import project_version
from serve_app.deployments.calls import (
    RemotePredictor,
    RemoteProposer,
    RemoteTextScorer,
    await_response,
)
from serve_app.deployments.compat.inventory import check
from serve_app.deployments.compat.runtime import watch_replica_counts
from serve_app.deployments.metrics import cluster_metrics
from serve_app.deployments.telemetry import join_serve_log, start_telemetry
from serve_app.deployments.watch import ReplicaCounts
from serve_app.flow.flow import SegmentationFlow
from serve_app.flow.readiness import ReadinessCheck
from serve_app.http import formats
from serve_app.http.app import create_app
from serve_app.http.gate import InFlightTracker
from serve_app.images.decode import silence_decoders
from serve_app.images.store import ImageStore
from serve_app.profiles.plan import Plan
from serve_app.scaling.reports import profile_report

log = logging.getLogger(__name__)


@serve.ingress()
class IngressReplica:
    """Serves HTTP through `serve_app.http` and Python callers through its methods."""

    def __init__(
        self,
        plan: Plan,
        decoders: Mapping[str, DeploymentHandle[Any]],
        proposals: DeploymentHandle[Any],
        text: DeploymentHandle[Any] | None,
    ) -> None:
        changes = check()
        settings = plan.settings
        join_serve_log()
        silence_decoders()
        formats.warm_up()
        start_telemetry(ingress=True)
        exposed = settings.security.exposure_warning(settings.ingress.http_host)
        for warning in filter(None, (*changes, *plan.warnings, exposed)):
            log.warning("%s", warning)
        self._profiles = profile_report(plan.measurements.profiles)
        self._limits, self._security = settings.limits, settings.security
        sign = settings.ingress.drain_file
        self._tracker = InFlightTracker(None if sign is None else Path(sign))
        predictors = {name: RemotePredictor(handle) for name, handle in decoders.items()}
        dispatcher = plan.dispatcher(predictors, in_process=False)
        self._counts = ReplicaCounts(settings, dispatcher.load_tracker)
        self._watch = watch_replica_counts(self._counts.deployments, self._counts.update)
        self._capabilities = load_capabilities(settings.capabilities)
        self._flow = SegmentationFlow(
            capabilities=self._capabilities,
            images=ImageStore(
                settings.limits, settings.cache.image_bytes, shared_tier(settings.cache)
            ),
            variants=plan.variants,
            predictors=predictors,
            proposer=RemoteProposer(proposals),
            scorer=None if text is None else RemoteTextScorer(text),
            dispatcher=dispatcher,
            limits=settings.limits,
            timeout_s=settings.ingress.request_timeout_s,
            checks=self._readiness_checks(settings, decoders, proposals, text),
        )

    def _readiness_checks(
        self,
        settings: GraphSettings,
        decoders: Mapping[str, DeploymentHandle[Any]],
        proposals: DeploymentHandle[Any],
        text: DeploymentHandle[Any] | None,
    ) -> list[ReadinessCheck]:
        """Readiness checks; none of what may scale to zero, which a check would start."""

        found = []
        for name, variant in settings.variants.items():
            if name in decoders and not variant.scales_to_zero:
                halves = ["decoder"] if variant.layout == "fused" else ["decoder", "encoder"]
                found.append((decoders[name], [f"{name}-{half}" for half in halves]))
        if not settings.proposals.scales_to_zero:
            found.append((proposals, ["proposals"]))
        if text is not None and settings.text is not None and not settings.text.scales_to_zero:
            found.append((text, ["text"]))
        return [
            ReadinessCheck(partial(_ping, handle), partial(self._counts.runs, *deployments))
            for handle, deployments in found
        ]

    def __serve_build_asgi_app__(self) -> FastAPI:
        """Called by Serve in the replica, after the constructor."""
        return create_app(
            self._flow,
            self._limits,
            capabilities=self._capabilities,
            metrics=cluster_metrics,
            version=project_version(),
            security=self._security,
            tracker=self._tracker,
            connectors=[article_router],
        )

    async def segment(self, request: SegmentRequest) -> SegmentResult:
        """Serve one request of a Python caller.

        Raises:
            InvalidRequest: no `SegmentRequest`.
        """
        if not isinstance(request, SegmentRequest):
            raise InvalidRequest("segment takes a SegmentRequest(image=..., task=...)")
        with self._begun():
            return await self._flow.segment(request)

    async def embed(self, image: EmbedRequest | bytes | str, variant: str = AUTO) -> EmbedResult:
        """Embed an image for a Python caller.

        Raises:
            InvalidImage: an array or a buffer of the caller's own.  Ray pickles arguments after
                ``remote()`` has returned, so they may arrive as they were not when it was called;
                an `EmbedRequest` has a copy.
        """
        if not isinstance(image, EmbedRequest | bytes | str):
            raise InvalidImage(
                "over a handle give EmbedRequest(image=...), a file's bytes or an image_id: "
                "arguments are sent after the call, when an array may have changed"
            )
        with self._begun():
            return await self._flow.embed(image, variant)

    async def models(self) -> Mapping[str, Any]:
        """The deployed variants."""
        return await self._flow.models()

    def record_autoscaling_stats(self) -> dict[str, float]:
        """Called by Serve for `serve_app.deployments.autoscaling`: the variants' profiles."""
        return self._profiles

    def _begun(self) -> InFlightTracker:
        """Count a Python caller's request while it is in flight.

        Raises:
            ShuttingDown: The service drains.
        """
        self._tracker.check()
        return self._tracker


async def _ping(handle: DeploymentHandle[Any]) -> bool:
    return bool(await await_response(handle.ping.remote()))
