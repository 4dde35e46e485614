"""The ports over Ray handles: Ray's errors as ours, lost calls made again, left ones cancelled.

Inference is pure, so a call whose replica died may be made again.  Serve does that itself as long
as a call has not begun; `ask` does it for those that were under way: once, within the deadline.

Ray Serve may be told to speak gRPC between replicas, which takes half the time of an actor call.
But it bounds messages, and a reference inside one would never be released.  So calls with images,
embeddings or much else go as actor calls (``_by_reference``), however Serve is set up.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, cast

import grpc
import ray
from ray.exceptions import ObjectLostError, RayActorError, RayTaskError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError
from ray.serve.handle import DeploymentHandle

from serve_app.core.deadline import time_left_s
from serve_app.core.errors import Overloaded, ReplicaLost, SamServeError, WeightsUnavailable
from serve_app.core.types import (
    Candidate,
    DecodeOptions,
    Embedding,
    Prediction,
    Prompt,
    Proposal,
    ProposalSource,
    RgbArray,
    ScorerInfo,
    TextScores,
)
from serve_app.telemetry.metrics import RETRIES

log = logging.getLogger(__name__)

Response = Any
"""A ``DeploymentResponse``, which handles declare as that or a generator of several."""

_FEW_PROMPTS = 16
"""A call with more is no small message, and its way no part of its time."""

_GONE = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)
"""What a call over gRPC ends with when its replica dies or closes its server."""


@dataclass(frozen=True, slots=True, eq=False)
class SharedPixels:
    """An image in the object store.

    Wrapped, a reference is passed on as it is instead of being fetched at each hop: pixels go
    from the ingress to the encoder, past the decoder.
    """

    ref: Any

    @classmethod
    async def of(cls, pixels: RgbArray) -> SharedPixels:
        """Put an image there; up to 200 MB, so not in the event loop."""
        return cls(await asyncio.to_thread(ray.put, pixels))

    async def array(self) -> RgbArray:
        """The pixels, read-only."""
        return cast(RgbArray, await self.ref)


async def ask(callee: str, send: Callable[[], Response]) -> Any:
    """Make a call, and once again if its replica is lost meanwhile and there is time.

    Args:
        callee: who is called, for the metrics.
        send: makes the call.

    Raises:
        ReplicaLost: the second replica was lost, too, or time is over.
        Others: as `answer_of`.
    """
    try:
        return await answer_of(send())
    except _LostHere:
        left_s = time_left_s()
        if left_s is not None and left_s <= 0:
            raise
    log.warning("a replica of %s was lost during a call, which is made again", callee)
    outcome = "ok"
    try:
        return await answer_of(send())
    except _LostHere:
        outcome = "failed"
        raise
    except asyncio.CancelledError:
        outcome = "left"
        raise
    finally:
        RETRIES.inc(callee=callee, outcome=outcome)


class _LostHere(ReplicaLost):
    """Lost by the very replica that was called; it leaves this process as a `ReplicaLost`.

    One that the callee tells of was asked again already, where it was lost.
    """

    def __reduce__(self) -> tuple[type[ReplicaLost], tuple[str, str | None]]:
        return ReplicaLost, (self.message, self.field)


async def answer_of(response: Response) -> Any:
    """Await a handle's response; errors come out as `SamServeError`.

    Whoever stops waiting cancels the call: Serve does so only for what a whole request leaves.

    Raises:
        Overloaded: queues are full.
        WeightsUnavailable: the deployment has no replica and cannot start one.
        ReplicaLost: the replica died, or was cancelled by another than the caller.
    """
    try:
        return await response
    except asyncio.CancelledError:
        task = asyncio.current_task()
        if task is not None and not task.cancelling():
            raise _LostHere("a part of the service went during the request") from None
        with suppress(Exception):  # of a call that has just ended in another way
            response.cancel()
        raise
    except RayTaskError as exc:
        if isinstance(exc.cause, SamServeError):
            raise exc.cause from None
        if isinstance(exc.cause, BackPressureError):
            raise Overloaded("the service is at its capacity; try again later") from None
        raise
    except BackPressureError:
        raise Overloaded("the service is at its capacity; try again later") from None
    except DeploymentUnavailableError:
        raise WeightsUnavailable(
            "a part of the service could not start; its log says why"
        ) from None
    except (RayActorError, ObjectLostError) as exc:
        raise _LostHere("a part of the service was lost during the request") from exc
    except grpc.aio.AioRpcError as exc:
        if exc.code() in _GONE:
            raise _LostHere("a part of the service was lost during the request") from exc
        raise


def _is_small(prompts: Sequence[Prompt], options: DecodeOptions) -> bool:
    """Whether call and answer are some kilobytes: no logits, and few masks."""
    return (
        len(prompts) <= _FEW_PROMPTS
        and not options.return_logits
        and all(prompt.mask_input is None for prompt in prompts)
    )


class RemoteEncoder:
    """The encoder over its handle."""

    def __init__(self, handle: DeploymentHandle[Any]) -> None:
        self._handle = handle.options(method_name="encode", _by_reference=True)

    async def encode(self, pixels: SharedPixels) -> Embedding:
        """Embed an image; its pixels go straight from the object store to the encoder."""
        found: Embedding = await ask(
            "encoder", lambda: self._handle.remote(pixels.ref, time_left_s())
        )
        # Copied out of the object store, which could not drop what the cache keeps.
        tensors = {name: tensor.copy() for name, tensor in found.tensors.items()}
        return Embedding(tensors, height=found.height, width=found.width)


class RemotePredictor:
    """`serve_app.core.ports.Predictor` over the decoder's handle."""

    def __init__(self, handle: DeploymentHandle[Any]) -> None:
        self._handle = handle
        self._small = handle.options(method_name="predict")
        self._large = handle.options(method_name="predict", _by_reference=True)

    async def predict(
        self,
        image_id: str,
        pixels: RgbArray | None,
        prompts: Sequence[Prompt],
        options: DecodeOptions,
    ) -> Prediction | None:
        shared = None if pixels is None else await SharedPixels.of(pixels)
        small = shared is None and _is_small(prompts, options)
        # The session is what the decoders' router goes by.
        handle = (self._small if small else self._large).options(session_id=image_id)

        def send() -> Response:
            now = replace(options, time_left_s=time_left_s())
            return handle.remote(image_id, shared, tuple(prompts), now)

        found: Prediction | None = await ask("decoder", send)
        return found

    async def scale_from_zero(self) -> None:
        await ask("decoder", self._handle.ping.remote)


class RemoteProposer:
    """`serve_app.core.ports.Proposer` over its handle."""

    def __init__(self, handle: DeploymentHandle[Any]) -> None:
        self._handle = handle.options(method_name="propose", _by_reference=True)

    async def propose(
        self,
        pixels: RgbArray | None,
        size: tuple[int, int],
        source: ProposalSource,
        points_per_side: int,
    ) -> tuple[Proposal, ...]:
        given = None if pixels is None else (await SharedPixels.of(pixels)).ref
        found: tuple[Proposal, ...] = await ask(
            "proposals", lambda: self._handle.remote(given, size, source, points_per_side)
        )
        return found


class RemoteTextScorer:
    """`serve_app.core.ports.TextScorer` over its handle."""

    def __init__(self, handle: DeploymentHandle[Any]) -> None:
        self._handle = handle
        self._info: ScorerInfo | None = None

    async def info(self) -> ScorerInfo:
        # The engine is chosen once, when its weights load.
        if self._info is not None:
            return self._info
        info: ScorerInfo = await ask("text", self._handle.info.remote)
        self._info = info
        return info

    async def score(
        self, pixels: RgbArray, candidates: Sequence[Candidate], texts: Sequence[str]
    ) -> TextScores:
        shared = await SharedPixels.of(pixels)
        handle = self._handle.options(method_name="score", _by_reference=True)
        found: TextScores = await ask(
            "text", lambda: handle.remote(shared.ref, tuple(candidates), tuple(texts))
        )
        return found
