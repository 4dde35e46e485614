"""A decoder replica outside Ray: its callers' time, over engines that do as they are told."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace

import numpy as np
import pytest

import serve_app.deployments.decoder
from serve_app.core.errors import DeadlineExceeded
from serve_app.core.inference import DecodeJob, DecodeOptions, Embedding
from serve_app.core.settings import CacheSettings, Compute, EncoderSettings, VariantSettings
from serve_app.core.types import Mask, Prompt, RgbArray
from serve_app.deployments.calls import ImageObjectRef
from serve_app.deployments.decoder import DecoderReplica
from serve_app.deployments.encoder import EncoderReplica
from serve_app.models.factory import ModelSource

PIXELS = np.zeros((4, 6, 3), np.uint8)
POINT = Prompt(point_coords=[[1, 1]], point_labels=[1])
VARIANT = VariantSettings(model="vit_t", layout="fused")


class Engine:
    """Both halves; a decoder's pass waits while the way is not free."""

    def __init__(self) -> None:
        self.free = threading.Event()
        self.free.set()
        self.encoded = 0
        self.jobs: list[DecodeJob] = []

    def encode_batch(self, images: Sequence[RgbArray]) -> list[Embedding]:
        self.encoded += len(images)
        return [Embedding({"e": np.zeros(4)}, height=4, width=6) for _ in images]

    def decode_batch(self, jobs: Sequence[DecodeJob]) -> list[tuple[Mask, ...]]:
        assert self.free.wait(60)
        self.jobs += jobs
        return [() for _ in jobs]


@dataclass(frozen=True)
class Source(ModelSource):
    """Its engine is both halves of every model."""

    engine: Engine = field(default_factory=Engine)

    def load_encoder(self, model: str, compute: Compute) -> Engine:
        return self.engine

    def load_decoder(self, model: str, compute: Compute) -> Engine:
        return self.engine


class Here(ImageObjectRef):
    """Pixels that are in no object store."""

    async def get(self) -> RgbArray:
        return PIXELS


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> Iterator[Engine]:
    made = Engine()
    context = SimpleNamespace(replica_tag="one", app_name="sam", deployment="fast-decoder")
    monkeypatch.setattr(serve_app.deployments.decoder.serve, "get_replica_context", lambda: context)
    yield made
    made.free.set()


def decoder(engine: Engine) -> DecoderReplica:
    return DecoderReplica(VARIANT, CacheSettings(), Source(engine=engine))


async def test_a_request_in_time_is_answered_and_its_time_is_no_matter_of_the_engine(
    engine: Engine,
) -> None:
    options = DecodeOptions(return_logits=True, time_left_s=60)
    found = await decoder(engine).predict("4x6-a", Here(None), (POINT, POINT), options)
    assert found is not None
    assert len(found.masks) == 2
    # Prompts of different callers share what their options make them share.
    assert [job.options for job in engine.jobs] == [DecodeOptions(return_logits=True)] * 2


async def test_work_stops_when_the_callers_time_is_over(engine: Engine) -> None:
    replica = decoder(engine)
    await replica.predict("4x6-a", Here(None), (), DecodeOptions())
    engine.free.clear()
    patient = asyncio.create_task(replica.predict("4x6-a", None, (POINT,), DecodeOptions()))
    while not replica._batcher.load().running:  # noqa: ASYNC110 - the engine's thread decides
        await asyncio.sleep(0)
    with pytest.raises(DeadlineExceeded):
        await replica.predict("4x6-a", None, (POINT,), DecodeOptions(time_left_s=0.01))
    assert replica._batcher.load().waiting == 0
    engine.free.set()
    assert await patient is not None
    assert len(engine.jobs) == 1


@pytest.mark.parametrize("time_left_s", [0.0, -1.0])
async def test_no_image_is_embedded_for_somebody_who_has_left(
    engine: Engine, time_left_s: float
) -> None:
    encoder = EncoderReplica("vit_t", EncoderSettings(), Source(engine=engine))
    warmed_up = engine.encoded
    with pytest.raises(DeadlineExceeded):
        await encoder.encode(PIXELS, time_left_s)
    assert engine.encoded == warmed_up
    await encoder.encode(PIXELS, 60.0)
    await encoder.encode(PIXELS)
    assert engine.encoded == warmed_up + 2
