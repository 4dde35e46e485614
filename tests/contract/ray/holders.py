"""Decoder replicas that hold embeddings of nothing, and a caller that asks them as an ingress does.

    Caller ──▶ Holder × 3, routed as decoders are

The embedding cache, the handle adapter and the router are the real ones.  Neither torch nor
weights are needed, so that a replica starts in a moment.
"""

from __future__ import annotations

import asyncio
import os
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ray import serve
from ray.serve import Application
from ray.serve.config import RequestRouterConfig

from serve_app.core.inference import DecodeJob, DecodeOptions, Embedding, Prediction, ReplicaLoad
from serve_app.core.settings import Batching, DecoderSettings
from serve_app.core.types import CacheTier, Mask, Prompt
from serve_app.deployments.calls import ImageObjectRef, RemotePredictor
from serve_app.deployments.compat.affinity import affinity
from serve_app.embeddings.predictor import VariantPredictor
from serve_app.embeddings.tiers import TieredEmbeddingCache

ROOT = Path(__file__).resolve().parents[3]
REPLICAS = 3
HOT_AT, FULL_AT = 4, 8
_POLL_S = 0.01
_PIXELS = np.zeros((2, 2, 3), np.uint8)
_ENVIRONMENT = {"runtime_env": {"env_vars": {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}}}

Answer = tuple[str, CacheTier]
"""Who answered, and whether it had the embedding."""


class Gate:
    """While it is shut, whoever comes waits; it knows how many have come.

    Of files, since processes share it: so it is looked at again and again.
    """

    def __init__(self, folder: str) -> None:
        self._folder = Path(folder)
        self._bar = self._folder / "shut"

    def shut(self) -> None:
        for mark in self._folder.iterdir():
            mark.unlink()
        self._bar.touch()

    async def open_when(self, arrived: int) -> None:
        while len(list(self._folder.iterdir())) - 1 < arrived:  # noqa: ASYNC110
            await asyncio.sleep(_POLL_S)
        self._bar.unlink()

    async def go_through(self) -> None:
        if self._bar.exists():
            (self._folder / uuid.uuid4().hex).touch()
        while self._bar.exists():  # noqa: ASYNC110
            await asyncio.sleep(_POLL_S)


class Holder:
    """A decoder replica, known by its process id."""

    def __init__(self, gate: str) -> None:
        self._gate = Gate(gate)
        self._predictor: VariantPredictor[ImageObjectRef] = VariantPredictor(
            TieredEmbeddingCache(2**20),
            self._encode,
            self._decode,
            weights_hash="w",
            preprocessing="p",
            dtype="float32",
        )

    async def predict(
        self,
        image_id: str,
        pixels: ImageObjectRef | None,
        prompts: Sequence[Prompt],
        options: DecodeOptions,
    ) -> Prediction | None:
        found = await self._predictor.predict(image_id, pixels, prompts, options)
        if found is None:
            return None
        load = ReplicaLoad(replica=str(os.getpid()))
        return Prediction(masks=(), cache=found.cache, timings_ms={}, load=load)

    async def _encode(self, pixels: ImageObjectRef) -> Embedding:
        return Embedding({"e": np.zeros(4)}, height=2, width=2)

    async def _decode(self, jobs: Sequence[DecodeJob]) -> list[tuple[Mask, ...]]:
        await self._gate.go_through()
        return [() for _ in jobs]

    async def ping(self) -> bool:
        return True


class Caller:
    """Each of its requests makes many calls at once."""

    def __init__(self, handle: Any, gate: str) -> None:
        self._predictor = RemotePredictor(handle)
        self._gate = Gate(gate)

    async def ask(self, images: Sequence[str], pixels: bool = True) -> list[Answer | None]:
        """A prompt on each image, all at once; None where the replica does not know it."""
        return list(await asyncio.gather(*(self._ask(image, pixels) for image in images)))

    async def crowd(self, image: str, calls: int, arrive: int) -> list[Answer | None]:
        """Calls on one image, of which the first is answered when ``arrive`` have arrived."""
        self._gate.shut()
        opened = asyncio.create_task(self._gate.open_when(arrive))
        answers = await self.ask([image] * calls)
        await opened
        return answers

    async def _ask(self, image: str, pixels: bool) -> Answer | None:
        prompt = Prompt(point_coords=[[1, 1]], point_labels=[1])
        given = _PIXELS if pixels else None
        found = await self._predictor.predict(image, given, (prompt,), DecodeOptions())
        if found is None:
            return None
        assert found.load is not None
        return found.load.replica, found.cache


def application(gate: str, router: RequestRouterConfig | None = None) -> Application:
    """Three holders, routed by affinity unless told otherwise, and a caller."""
    batching = Batching(max_batch_size=HOT_AT)
    settings = DecoderSettings(batching=batching, max_ongoing_requests=FULL_AT)
    holders = serve.deployment(
        name="holder",
        num_replicas=REPLICAS,
        max_ongoing_requests=FULL_AT,
        ray_actor_options={"num_cpus": 0, **_ENVIRONMENT},
        request_router_config=router or affinity(settings),
    )(Holder)
    caller = serve.deployment(
        name="caller",
        max_ongoing_requests=100,
        ray_actor_options={"num_cpus": 0, **_ENVIRONMENT},
    )(Caller)
    bound: Application = caller.bind(holders.bind(gate), gate)
    return bound
