"""Calls to other deployments: converts Ray's errors, and retries lost calls once.

Inference has no side effects, so a call can be repeated after its replica died.  Serve itself
retries calls that have not started; `call_with_retry` retries those in flight once, before the
deadline.

With gRPC between replicas a call takes half the time of an actor call, but messages are limited in
size.  So calls with images, embeddings or many prompts always go by reference
(`serve_app.deployments.compat.runtime.by_reference`).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, cast

import ray
from ray.exceptions import RayTaskError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError
from ray.serve.handle import DeploymentHandle

from serve_app.core.deadline import time_left_s
from serve_app.core.errors import Overloaded, ReplicaLost, SamServeError, WeightsUnavailable
from serve_app.core.inference import (
    Candidate,
    DecodeOptions,
    Embedding,
    Prediction,
    Proposal,
    ScorerInfo,
    TextScores,
)
from serve_app.core.types import Prompt, ProposalSource, RgbArray, UnknownText
from serve_app.deployments.compat.runtime import by_reference, is_replica_lost
from serve_app.telemetry.metrics import RETRIES

log = logging.getLogger(__name__)

Response = Any
"""A ``DeploymentResponse``; Ray annotates handles as returning that or a generator."""

_FEW_PROMPTS = 16

_LOST = "a replica was lost during the request; it is safe to retry"
_OVERLOADED = "the service is at capacity; retry later"


@dataclass(frozen=True, slots=True, eq=False)
class ImageObjectRef:
    """An image in Ray's object store.

    Ray resolves a bare reference at each hop.  A wrapped one is passed on unresolved, so pixels go
    from the ingress directly to the encoder, bypassing the decoder.
    """

    ref: Any

    @classmethod
    async def put(cls, pixels: RgbArray) -> ImageObjectRef:
        """Store an ``(H, W, 3) uint8`` image, in a thread: it may have 200 MB."""
        return cls(await asyncio.to_thread(ray.put, pixels))

    async def get(self) -> RgbArray:
        """The pixels, read-only."""
        return cast(RgbArray, await self.ref)


class CalleeLost(ReplicaLost):
    """The called replica itself was lost; other processes see a plain `ReplicaLost`.

    A `ReplicaLost` that the callee raises was already retried where the loss happened.
    """

    def __reduce__(self) -> tuple[type[ReplicaLost], tuple[str, str | None]]:
        return ReplicaLost, (self.message, self.field)


async def call_with_retry(callee: str, send: Callable[[], Response]) -> Any:
    """Make a call with ``send``; retry it once if its replica is lost, before the deadline.

    Raises:
        ReplicaLost: The second replica was lost too, or the deadline has passed.
        Others: As `await_response`.
    """
    try:
        return await await_response(send())
    except CalleeLost:
        left_s = time_left_s()
        if left_s is not None and left_s <= 0:
            raise
    log.warning("a replica of %s was lost during a call; retrying", callee)
    outcome = "ok"
    try:
        return await await_response(send())
    except CalleeLost:
        outcome = "failed"
        raise
    except asyncio.CancelledError:
        outcome = "left"
        raise
    finally:
        RETRIES.inc(callee=callee, outcome=outcome)


async def await_response(response: Response) -> Any:
    """Await a handle's response, and cancel the call if the caller is cancelled.

    Serve cancels calls only when the whole request is cancelled.

    Raises:
        Overloaded: Queues are full.
        WeightsUnavailable: The deployment has no replica and cannot start one.
        CalleeLost: The replica died, or was cancelled by another process than the caller.
        SamServeError: As the callee raised it.
    """
    try:
        return await response
    except asyncio.CancelledError:
        task = asyncio.current_task()
        if task is not None and not task.cancelling():
            raise CalleeLost(_LOST) from None
        with suppress(Exception):  # the call may just have ended
            response.cancel()
        raise
    except RayTaskError as exc:
        if isinstance(exc.cause, SamServeError):
            raise exc.cause from None
        if isinstance(exc.cause, BackPressureError):
            raise Overloaded(_OVERLOADED) from None
        raise
    except BackPressureError:
        raise Overloaded(_OVERLOADED) from None
    except DeploymentUnavailableError:
        raise WeightsUnavailable("a deployment could not start; see the service's log") from None
    except Exception as exc:
        if is_replica_lost(exc):
            raise CalleeLost(_LOST) from exc
        raise


class RemoteEncoder:
    """An encoder deployment."""

    def __init__(self, handle: DeploymentHandle[Any]) -> None:
        self._handle = by_reference(handle, "encode")

    async def encode(self, image: ImageObjectRef) -> Embedding:
        """Embed an image; its pixels go directly from the object store to the encoder."""
        found: Embedding = await call_with_retry(
            "encoder", lambda: self._handle.remote(image.ref, time_left_s())
        )
        # Copied: a cached view would keep the object in the object store.
        tensors = {name: tensor.copy() for name, tensor in found.tensors.items()}
        return Embedding(tensors, height=found.height, width=found.width)


class RemotePredictor:
    """A decoder deployment as `serve_app.core.ports.Predictor`."""

    def __init__(self, handle: DeploymentHandle[Any]) -> None:
        self._handle = handle
        self._small = handle.options(method_name="predict")
        self._large = by_reference(handle, "predict")

    async def predict(
        self,
        image_id: str,
        pixels: RgbArray | None,
        prompts: Sequence[Prompt],
        options: DecodeOptions,
    ) -> Prediction | None:
        image = None if pixels is None else await ImageObjectRef.put(pixels)
        # Request and response are some kilobytes: no pixels, no logits, and few masks.
        small = (
            image is None
            and len(prompts) <= _FEW_PROMPTS
            and not options.return_logits
            and all(prompt.mask_input is None for prompt in prompts)
        )
        # The decoders' router hashes the session id.
        handle = (self._small if small else self._large).options(session_id=image_id)

        def send() -> Response:
            now = replace(options, time_left_s=time_left_s())
            return handle.remote(image_id, image, tuple(prompts), now)

        found: Prediction | None = await call_with_retry("decoder", send)
        return found

    async def scale_from_zero(self) -> None:
        await call_with_retry("decoder", self._handle.ping.remote)


class RemoteProposer:
    """A proposals deployment as `serve_app.core.ports.Proposer`."""

    def __init__(self, handle: DeploymentHandle[Any]) -> None:
        self._handle = by_reference(handle, "propose")

    async def propose(
        self,
        pixels: RgbArray | None,
        size: tuple[int, int],
        source: ProposalSource,
        points_per_side: int,
    ) -> tuple[Proposal, ...]:
        ref = None if pixels is None else (await ImageObjectRef.put(pixels)).ref
        found: tuple[Proposal, ...] = await call_with_retry(
            "proposals", lambda: self._handle.remote(ref, size, source, points_per_side)
        )
        return found


class RemoteTextScorer:
    """A text deployment as `serve_app.core.ports.TextScorer`."""

    def __init__(self, handle: DeploymentHandle[Any]) -> None:
        self._handle = handle
        self._score = by_reference(handle, "score")
        self._info: ScorerInfo | None = None

    async def info(self) -> ScorerInfo:
        if self._info is None:  # the engine never changes
            self._info = cast(ScorerInfo, await call_with_retry("text", self._handle.info.remote))
        return self._info

    async def unknown(self, texts: Sequence[str]) -> tuple[UnknownText | None, ...]:
        found: tuple[UnknownText | None, ...] = await call_with_retry(
            "text", lambda: self._handle.unknown.remote(tuple(texts))
        )
        return found

    async def score(
        self, pixels: RgbArray, candidates: Sequence[Candidate], texts: Sequence[str]
    ) -> TextScores:
        image = await ImageObjectRef.put(pixels)
        found: TextScores = await call_with_retry(
            "text", lambda: self._score.remote(image.ref, tuple(candidates), tuple(texts))
        )
        return found
