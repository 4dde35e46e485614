"""The ports over Ray handles, and Ray's errors as ours.

Ray Serve may be told to speak gRPC between replicas, which takes half the time of an actor call.
But it bounds messages, and a reference inside one would never be released.  So calls with images,
embeddings or much else go as actor calls (``_by_reference``), however Serve is set up.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import ray
from ray.exceptions import RayActorError, RayTaskError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError
from ray.serve.handle import DeploymentHandle

from serve_app.domain.deadline import time_left_s
from serve_app.domain.errors import InternalError, Overloaded, SamServeError, WeightsUnavailable
from serve_app.domain.types import (
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

T = TypeVar("T")

_FEW_PROMPTS = 16
"""A call with more is no small message, and its way no part of its time."""


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


async def answer_of(response: Awaitable[T]) -> T:
    """Await a handle's response; errors come out as `SamServeError`.

    Raises:
        Overloaded: queues are full.
        WeightsUnavailable: the deployment has no replica and cannot start one.
        InternalError: the replica died.
    """
    try:
        return await response
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
    except RayActorError as exc:
        raise InternalError("a part of the service was lost during the request") from exc


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
        found: Embedding = await answer_of(self._handle.remote(pixels.ref, time_left_s()))
        # Copied out of the object store, which could not drop what the cache keeps.
        tensors = {name: tensor.copy() for name, tensor in found.tensors.items()}
        return Embedding(tensors, height=found.height, width=found.width)


class RemotePredictor:
    """`serve_app.ports.Predictor` over the decoder's handle."""

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
        return await answer_of(handle.remote(image_id, shared, tuple(prompts), options))

    async def wake(self) -> None:
        await answer_of(self._handle.ping.remote())


class RemoteProposer:
    """`serve_app.ports.Proposer` over its handle."""

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
        return await answer_of(self._handle.remote(given, size, source, points_per_side))


class RemoteTextScorer:
    """`serve_app.ports.TextScorer` over its handle."""

    def __init__(self, handle: DeploymentHandle[Any]) -> None:
        self._handle = handle
        self._info: ScorerInfo | None = None

    async def info(self) -> ScorerInfo:
        # The engine is chosen once, when its weights load.
        if self._info is not None:
            return self._info
        info: ScorerInfo = await answer_of(self._handle.info.remote())
        self._info = info
        return info

    async def score(
        self, pixels: RgbArray, candidates: Sequence[Candidate], texts: Sequence[str]
    ) -> TextScores:
        shared = await SharedPixels.of(pixels)
        handle = self._handle.options(method_name="score", _by_reference=True)
        return await answer_of(handle.remote(shared.ref, tuple(candidates), tuple(texts)))
