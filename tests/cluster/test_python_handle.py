"""The graph as a Python caller sees it: ``serve.get_app_handle`` with typed requests."""

from __future__ import annotations

import asyncio
from typing import Any

import numpy as np
import pytest
from ray import serve

from serve_app.capabilities import EmbedRequest, SegmentRequest, TextQuery, load_capabilities
from serve_app.client import HttpService
from serve_app.core.errors import InvalidImage, InvalidPrompt, SamServeError, UnknownVariant
from serve_app.core.request import image_id
from serve_app.core.types import CacheTier, EmbedResult, Prompt, SegmentResult

from ..golden.cases import photo
from ..toy_capability import Brightness, BrightnessResult
from .conftest import Served

pytestmark = [pytest.mark.cluster, pytest.mark.weights, pytest.mark.usefixtures("driver")]

BOX = Prompt(box=np.array([110, 20, 330, 230]), multimask_output=False)


def call(request: SegmentRequest) -> SegmentResult:
    result: SegmentResult = (
        serve.get_app_handle("sam").segment.remote(request).result(timeout_s=300)
    )
    return result


def test_masks_come_back_as_numpy() -> None:
    result = call(SegmentRequest(image=photo("chelsea"), task=[BOX], return_logits=True))
    mask = result.results[0].masks[0]
    assert mask.array.shape == photo("chelsea").shape[:2]
    assert mask.array.dtype == bool
    assert mask.area == mask.array.sum() > 10_000
    assert mask.low_res_logits is not None
    assert mask.low_res_logits.shape == (256, 256)
    again = call(SegmentRequest(image=result.image_id, task=[BOX]))
    assert again.cache is CacheTier.MEMORY
    np.testing.assert_array_equal(again.results[0].masks[0].array, mask.array)


def test_text_and_embed_are_there_too() -> None:
    handle = serve.get_app_handle("sam")
    request = EmbedRequest(image=photo("chelsea"))
    embedded: EmbedResult = handle.embed.remote(request).result(timeout_s=300)
    assert (embedded.width, embedded.height) == (451, 300)
    found = call(SegmentRequest(image=embedded.image_id, task=TextQuery(text=("cat",))))
    assert found.results[0].present is True
    assert found.cache is CacheTier.MEMORY


def test_a_camera_that_reuses_its_buffer_gets_the_frames_that_it_sent() -> None:
    """Ray pickles arguments after ``remote()`` has returned."""
    handle = serve.get_app_handle("sam")
    frame = photo("chelsea").copy()
    sent, responses = [], []
    for i in range(6):
        frame[0, 0] = i
        sent.append(image_id(frame))
        if i % 2:
            responses.append(handle.embed.remote(EmbedRequest(image=frame)))
        else:
            responses.append(handle.segment.remote(SegmentRequest(image=frame, task=BOX)))
        frame[:] = 0
        frame[:] = photo("chelsea")
    assert [response.result(timeout_s=300).image_id for response in responses] == sent
    with pytest.raises(InvalidImage, match="EmbedRequest"):
        handle.embed.remote(frame).result(timeout_s=300)


def test_a_capability_that_the_configuration_names(served: Served) -> None:
    """By handle and over HTTP, from a module that the service's package knows nothing of."""
    request = SegmentRequest(image=photo("chelsea"), task=Brightness(columns=1))
    result = call(request)
    assert result.results == (BrightnessResult([float(photo("chelsea").mean())]),)

    async def over_http() -> SegmentResult:
        capabilities = load_capabilities(["tests.toy_capability"])
        async with HttpService(served.url, capabilities=capabilities) as sam:
            return await sam.segment(request)

    assert asyncio.run(over_http()).results == result.results


@pytest.mark.parametrize(
    ("request_", "error", "field"),
    [
        ({"variant": "huge"}, UnknownVariant, "variant"),
        ({"image": b"no image"}, InvalidImage, None),
        ({"task": [Prompt(box=[900, 900, 950, 950])]}, InvalidPrompt, "prompts[0].box"),
    ],
)
def test_errors_arrive_as_themselves(
    request_: dict[str, Any], error: type[SamServeError], field: str | None
) -> None:
    """``except InvalidPrompt`` works in the caller's process: the types survive pickling."""
    usual = {"image": photo("chelsea"), "task": [BOX]}
    with pytest.raises(error) as caught:
        call(SegmentRequest(**{**usual, **request_}))
    told = caught.value
    assert (told.code, told.status) == (error.code, error.status)
    if field is not None:
        assert told.body()["field"] == field
