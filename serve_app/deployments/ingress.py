"""The ingress: HTTP and Python calls in, `SegmentationFlow` over handles.  Never imports torch."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from contextlib import AbstractContextManager
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from ray import serve
from ray.serve.context import _get_global_client
from ray.serve.handle import DeploymentHandle

from serve_app.cache.shared import shared_tier
from serve_app.capabilities import SegmentRequest, load_capabilities
from serve_app.core.exposure import exposure_warning
from serve_app.core.settings import GraphSettings
from serve_app.core.types import EmbedResult, RgbArray, SegmentResult, VariantInfo
from serve_app.deployments.handles import (
    RemotePredictor,
    RemoteProposer,
    RemoteTextScorer,
    answer_of,
)
from serve_app.deployments.metrics import cluster_metrics
from serve_app.deployments.replica import join_serve_log
from serve_app.deployments.telemetry import start_telemetry
from serve_app.deployments.watch import ReplicaWatch
from serve_app.flow.flow import SegmentationFlow
from serve_app.flow.readiness import Part
from serve_app.http.app import create_app
from serve_app.http.work import Work
from serve_app.images.decode import silence_pillow_warnings
from serve_app.images.store import ImageStore
from serve_app.profiles.load import LoadedLedger
from serve_app.profiles.wiring import dispatcher_of

log = logging.getLogger(__name__)


@serve.ingress()
class IngressReplica:
    """Answers HTTP through `serve_app.http` and Python callers through its methods."""

    def __init__(
        self,
        settings: GraphSettings,
        variants: Mapping[str, VariantInfo],
        ledger: LoadedLedger,
        decoders: Mapping[str, DeploymentHandle[Any]],
        proposals: DeploymentHandle[Any],
        text: DeploymentHandle[Any] | None,
    ) -> None:
        join_serve_log()
        silence_pillow_warnings()
        start_telemetry(ingress=True)
        controller = _get_global_client()
        host = None if controller is None else controller.http_config.host
        exposed = exposure_warning(settings.security, host)
        for warning in filter(None, (*ledger.warnings, exposed)):
            log.warning("%s", warning)
        self._limits, self._security = settings.limits, settings.security
        sign = settings.ingress.drain_file
        self._work = Work(None if sign is None else Path(sign))
        predictors = {name: RemotePredictor(handle) for name, handle in decoders.items()}
        dispatcher = dispatcher_of(settings, ledger, predictors, awake=False)
        self._watch = ReplicaWatch(settings, dispatcher.board)
        self._capabilities = load_capabilities(settings.capabilities)
        self._flow = SegmentationFlow(
            capabilities=self._capabilities,
            images=ImageStore(
                settings.limits, settings.cache.image_bytes, shared_tier(settings.cache)
            ),
            variants=variants,
            predictors=predictors,
            proposer=RemoteProposer(proposals),
            scorer=None if text is None else RemoteTextScorer(text),
            dispatcher=dispatcher,
            limits=settings.limits,
            timeout_s=settings.ingress.request_timeout_s,
            parts=self._parts(settings, decoders, proposals, text),
        )

    def _parts(
        self,
        settings: GraphSettings,
        decoders: Mapping[str, DeploymentHandle[Any]],
        proposals: DeploymentHandle[Any],
        text: DeploymentHandle[Any] | None,
    ) -> list[Part]:
        """What may sleep is not asked whether it is ready: the question would wake it."""

        def part(handle: DeploymentHandle[Any], *deployments: str) -> Part:
            return Part(partial(_ping, handle), partial(self._watch.runs, *deployments))

        found = []
        for name, handle in decoders.items():
            variant = settings.variants[name]
            halves = [f"{name}-decoder"]
            if variant.layout == "split":
                halves.append(f"{name}-encoder")
            if not variant.sleeps:
                found.append(part(handle, *halves))
        if not settings.proposals.sleeps:
            found.append(part(proposals, "proposals"))
        if text is not None and settings.text is not None and not settings.text.sleeps:
            found.append(part(text, "text"))
        return found

    def __serve_build_asgi_app__(self) -> FastAPI:
        """Called by Serve in the replica, after the constructor."""
        return create_app(
            self._flow,
            self._limits,
            capabilities=self._capabilities,
            metrics=cluster_metrics,
            version=version("sam-serve"),
            security=self._security,
            work=self._work,
        )

    async def segment(self, request: SegmentRequest) -> SegmentResult:
        """Answer one request of a Python caller."""
        with self._begun():
            return await self._flow.segment(request)

    async def embed(self, image: bytes | RgbArray | str, variant: str = "auto") -> EmbedResult:
        """Embed an image for a Python caller."""
        with self._begun():
            return await self._flow.embed(image, variant)

    async def models(self) -> Mapping[str, Any]:
        """What is deployed."""
        return await self._flow.models()

    def _begun(self) -> AbstractContextManager[None]:
        """Counts a Python caller's request.

        Raises:
            ShuttingDown: nothing new is begun.
        """
        if self._work.draining:
            raise self._work.refusal
        return self._work.one()


async def _ping(handle: DeploymentHandle[Any]) -> bool:
    return bool(await answer_of(handle.ping.remote()))
