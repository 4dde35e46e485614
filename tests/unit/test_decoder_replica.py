"""A decoder replica outside Ray: its callers' time, over engines that do as they are told."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from types import SimpleNamespace

import numpy as np
import pytest

import serve_app.deployments.decoder
from serve_app.core.errors import DeadlineExceeded
from serve_app.core.inference import DecodeOptions
from serve_app.core.settings import CacheSettings, EncoderSettings, VariantSettings
from serve_app.core.types import Prompt, RgbArray
from serve_app.deployments.calls import ImageObjectRef
from serve_app.deployments.decoder import DecoderReplica
from serve_app.deployments.engines import EncoderReplica

from ..fakes.engines import FakeDecoder, FakeEncoder, FakeSource, no_masks

PIXELS = np.zeros((4, 6, 3), np.uint8)
POINT = Prompt(point_coords=[[1, 1]], point_labels=[1])
VARIANT = VariantSettings(model="vit_t", layout="fused")


class Here(ImageObjectRef):
    """Pixels that are in no object store."""

    async def get(self) -> RgbArray:
        return PIXELS


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeDecoder]:
    made = FakeDecoder(masks_of=no_masks)
    context = SimpleNamespace(replica_tag="one", app_name="sam", deployment="fast-decoder")
    monkeypatch.setattr(serve_app.deployments.decoder.serve, "get_replica_context", lambda: context)
    yield made
    made.free.set()


def decoder(engine: FakeDecoder) -> DecoderReplica:
    return DecoderReplica(VARIANT, CacheSettings(), FakeSource(decoder=engine))


async def test_a_request_in_time_is_answered_and_its_time_is_no_matter_of_the_engine(
    engine: FakeDecoder,
) -> None:
    options = DecodeOptions(return_logits=True, time_left_s=60)
    found = await decoder(engine).predict("4x6-a", Here(None), (POINT, POINT), options)
    assert found is not None
    assert len(found.masks) == 2
    # Prompts of different callers share what their options make them share.
    assert [job.options for job in engine.jobs] == [DecodeOptions(return_logits=True)] * 2


async def test_work_stops_when_the_callers_time_is_over(engine: FakeDecoder) -> None:
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
async def test_no_image_is_embedded_for_somebody_who_has_left(time_left_s: float) -> None:
    engine = FakeEncoder()
    encoder = EncoderReplica("vit_t", EncoderSettings(), FakeSource(encoder=engine))
    warmed_up = len(engine.batches)
    with pytest.raises(DeadlineExceeded):
        await encoder.encode(PIXELS, time_left_s)
    assert len(engine.batches) == warmed_up
    await encoder.encode(PIXELS, 60.0)
    await encoder.encode(PIXELS)
    assert [*engine.batches][warmed_up:] == [1, 1]
