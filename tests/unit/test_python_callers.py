"""The ingress replica's methods for Python callers refuse what Ray could send too late."""

from __future__ import annotations

from contextlib import nullcontext
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from serve_app.capabilities import EmbedRequest, Prompt, SegmentRequest
from serve_app.core.errors import InvalidImage, InvalidRequest
from serve_app.core.request import image_id
from serve_app.deployments.ingress import IngressReplica

from ..fakes.flow import FakeGraph

PIXELS = np.zeros((9, 9, 3), np.uint8)
Replica: Any = IngressReplica


@pytest.fixture
def replica() -> Any:
    """With its flow, outside of Ray."""
    state = SimpleNamespace(_flow=FakeGraph().flow, _begun=nullcontext)
    calls = {name: partial(getattr(Replica, name), state) for name in ("embed", "segment")}
    return SimpleNamespace(**calls)


@pytest.mark.parametrize("image", [PIXELS, bytearray(9), memoryview(b"x"), None, [1]])
async def test_embed_takes_no_buffer_of_the_callers(replica: Any, image: Any) -> None:
    with pytest.raises(InvalidImage, match="EmbedRequest"):
        await replica.embed(image)


async def test_embed_takes_a_request_and_a_known_image(replica: Any) -> None:
    embedded = await replica.embed(EmbedRequest(image=PIXELS, variant="accurate"))
    assert (embedded.image_id, embedded.variant) == (image_id(PIXELS), "accurate")
    assert (await replica.embed(embedded.image_id, "accurate")).image_id == embedded.image_id
    with pytest.raises(InvalidRequest, match="its own variant"):
        await replica.embed(EmbedRequest(image=PIXELS), "accurate")


@pytest.mark.parametrize("request_", [{"image": b"x"}, Prompt(box=[1, 2, 3, 4]), b"x", None])
async def test_segment_takes_a_request(replica: Any, request_: Any) -> None:
    with pytest.raises(InvalidRequest, match="SegmentRequest"):
        await replica.segment(request_)
    result = await replica.segment(SegmentRequest(image=PIXELS, task=Prompt(box=[1, 2, 3, 4])))
    assert len(result.results) == 1
