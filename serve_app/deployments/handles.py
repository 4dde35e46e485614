"""The ports over Ray handles, and Ray's errors as ours."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import ray
from ray.exceptions import RayActorError, RayTaskError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError
from ray.serve.handle import DeploymentHandle

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


class RemoteEncoder:
    """The encoder over its handle."""

    def __init__(self, handle: DeploymentHandle[Any]) -> None:
        self._handle = handle

    async def encode(self, pixels: SharedPixels) -> Embedding:
        """Embed an image; its pixels go straight from the object store to the encoder."""
        found: Embedding = await answer_of(self._handle.encode.remote(pixels.ref))
        # Copied out of the object store, which could not drop what the cache keeps.
        tensors = {name: tensor.copy() for name, tensor in found.tensors.items()}
        return Embedding(tensors, height=found.height, width=found.width)


class RemotePredictor:
    """`serve_app.ports.Predictor` over the decoder's handle."""

    def __init__(self, handle: DeploymentHandle[Any]) -> None:
        self._handle = handle

    async def predict(
        self,
        image_id: str,
        pixels: RgbArray | None,
        prompts: Sequence[Prompt],
        options: DecodeOptions,
    ) -> Prediction | None:
        shared = None if pixels is None else await SharedPixels.of(pixels)
        return await answer_of(
            self._handle.predict.remote(image_id, shared, tuple(prompts), options)
        )

    async def wake(self) -> None:
        await answer_of(self._handle.ping.remote())


class RemoteProposer:
    """`serve_app.ports.Proposer` over its handle."""

    def __init__(self, handle: DeploymentHandle[Any]) -> None:
        self._handle = handle

    async def propose(
        self,
        pixels: RgbArray | None,
        size: tuple[int, int],
        source: ProposalSource,
        points_per_side: int,
    ) -> tuple[Proposal, ...]:
        given = None if pixels is None else (await SharedPixels.of(pixels)).ref
        return await answer_of(self._handle.propose.remote(given, size, source, points_per_side))


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
        return await answer_of(
            self._handle.score.remote(shared.ref, tuple(candidates), tuple(texts))
        )
