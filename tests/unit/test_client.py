"""The Python client against the real HTTP interface, in process."""

from __future__ import annotations

import asyncio
import io
import re
import socket
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import httpx
import numpy as np
import pytest
import uvicorn
from PIL import Image

from serve_app import client
from serve_app.capabilities import Everything, Prompts, SegmentRequest, TextQuery
from serve_app.client import (
    HttpService,
    InvalidAddress,
    SyncHttpService,
    UnexpectedResponse,
    Unreachable,
)
from serve_app.core.errors import (
    InternalError,
    InvalidRequest,
    Overloaded,
    SamServeError,
    UnknownImage,
)
from serve_app.core.limits import Limits
from serve_app.core.request import EmbedRequest
from serve_app.core.rle import encode_rle
from serve_app.core.types import (
    CacheTier,
    Mask,
    Prompt,
    PromptResult,
    ProposalSource,
    SegmentResult,
)
from serve_app.http.app import create_app

from ..clocks import Clock
from ..fakes.service import IMAGE_ID, FakeService

SHAPE = np.tri(7, 9, dtype=np.bool_)
LOGITS = np.linspace(-9, 9, 256 * 256, dtype=np.float16).reshape(256, 256)
MASK = Mask(
    rle=encode_rle(SHAPE),
    score=0.75,
    stability_score=0.5,
    bbox=(0, 0, 7, 7),
    area=int(SHAPE.sum()),
    low_res_logits=LOGITS,
    point_coords=((3.5, 4.5),),
    crop_box=(0, 0, 9, 7),
    text_score=0.25,
    label="dog",
)


class Recorder(FakeService):
    """Responds to everything with one mask that has all members."""

    def respond(self, request: SegmentRequest) -> SegmentResult:
        result = PromptResult(
            masks=(MASK,), text="dog", present=True, best_score=0.25, variant=self.answered_by
        )
        return SegmentResult(
            image_id="9-7-abc",
            width=9,
            height=7,
            results=(result,),
            variant="fast",
            model="vit_t",
            reason="asked for",
            cache=CacheTier.REDIS,
            timings_ms={"embed": 1.5},
            text_engine="labels",
            threshold=0.125,
            **self.more,
        )


@pytest.fixture
def recorder() -> Recorder:
    return Recorder()


@pytest.fixture
async def sam(recorder: Recorder) -> AsyncIterator[HttpService]:
    async def metrics() -> bytes:
        return b""

    app = create_app(recorder, Limits(), metrics=metrics, version="0")
    async with HttpService("http://sam", transport=httpx.ASGITransport(app)) as service:
        yield service


def over(handler: Callable[[httpx.Request], httpx.Response]) -> HttpService:
    return HttpService("http://sam", transport=httpx.MockTransport(handler))


async def asked(sam: HttpService, recorder: Recorder, request: SegmentRequest) -> SegmentRequest:
    """The request as it arrived on the other side."""
    await sam.segment(request)
    return recorder.requests[-1]


async def test_prompts_arrive_as_they_were(sam: HttpService, recorder: Recorder) -> None:
    prompts = (
        Prompt(box=np.array([0.1, 1, 5, 6]), multimask_output=False),
        Prompt(
            point_coords=np.array([[1.5, 2.5], [3, 4]]),
            point_labels=np.array([1, 0]),
            mask_input=LOGITS.astype(np.float32) / np.float32(3),
        ),
    )
    request = SegmentRequest(image=b"file", task=prompts, variant="slow", return_logits=True)
    arrived = await asked(sam, recorder, request)
    assert (arrived.image, arrived.variant, arrived.return_logits) == (b"file", "slow", True)
    assert isinstance(arrived.task, Prompts)
    assert arrived.task.size == 2
    for sent, got in zip(prompts, arrived.task.prompts, strict=True):
        assert sent.multimask_output == got.multimask_output
        for name in ("box", "point_coords", "point_labels", "mask_input"):
            np.testing.assert_array_equal(getattr(sent, name), getattr(got, name))


@pytest.mark.parametrize(
    "task",
    [
        TextQuery(text=("dog",)),
        TextQuery(
            text=("a dog", "Hündin"),
            text_threshold=0.0,
            max_masks=3,
            proposals=ProposalSource.CONTOURS,
        ),
        Everything(),
        Everything(points_per_side=8, crop_n_layers=1, proposals=ProposalSource.DETECTOR),
    ],
)
async def test_other_tasks_arrive_as_they_were(
    sam: HttpService, recorder: Recorder, task: TextQuery | Everything
) -> None:
    arrived = await asked(sam, recorder, SegmentRequest(image="9-7-abc", task=task))
    assert arrived.task == task
    assert (arrived.image, arrived.variant) == ("9-7-abc", "auto")


async def test_pixels_arrive_without_loss(sam: HttpService, recorder: Recorder) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (7, 9, 3), dtype=np.uint8)
    arrived = await asked(
        sam, recorder, SegmentRequest(image=pixels, task=TextQuery(text=("dog",)))
    )
    assert isinstance(arrived.image, bytes)
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(arrived.image))), pixels)


async def test_answer_comes_back_whole(sam: HttpService) -> None:
    request = SegmentRequest(image=b"file", task=TextQuery(text=("dog",)))
    result = await sam.segment(request)
    assert (result.image_id, result.width, result.height) == ("9-7-abc", 9, 7)
    assert (result.variant, result.model, result.reason) == ("fast", "vit_t", "asked for")
    assert (result.cache, result.text_engine, result.threshold) == ("redis", "labels", 0.125)
    assert result.timings_ms["embed"] == 1.5
    (answer,) = result.results
    assert (answer.text, answer.present, answer.best_score) == ("dog", True, 0.25)
    (mask,) = answer.masks
    np.testing.assert_array_equal(mask.array, SHAPE)
    assert mask.low_res_logits is not None
    np.testing.assert_array_equal(mask.low_res_logits, LOGITS)
    for name in Mask.__slots__:
        if name != "low_res_logits":
            assert getattr(mask, name) == getattr(MASK, name), name


@pytest.mark.parametrize("image", [b"file", "9-7-abc"], ids=["form", "json"])
async def test_hints_and_deadline_arrive_as_they_were(
    sam: HttpService, recorder: Recorder, clock: Clock, image: bytes | str
) -> None:
    task = (Prompt(box=np.array([0, 1, 5, 6])),)
    hints = {"max_latency_ms": 150.5, "min_quality": 0.75, "timeout_s": 2.5}
    arrived = await asked(sam, recorder, SegmentRequest(image=image, task=task, **hints))
    assert {name: getattr(arrived, name) for name in hints} == hints
    arrived = await asked(sam, recorder, SegmentRequest(image=image, task=task))
    assert {getattr(arrived, name) for name in hints} == {None}


async def test_what_the_router_did_comes_back(sam: HttpService, recorder: Recorder) -> None:
    request = SegmentRequest(image=b"file", task=TextQuery(text=("dog",)))
    result = await sam.segment(request)
    assert (result.expected_ms, result.degraded, result.escalated) == (None, False, 0)
    assert result.results[0].variant is None
    recorder.more = {"expected_ms": 12.5, "degraded": True, "escalated": 3}
    recorder.answered_by = "accurate"
    result = await sam.segment(request)
    assert (result.expected_ms, result.degraded, result.escalated) == (12.5, True, 3)
    assert result.results[0].variant == "accurate"


async def test_embed_models_and_ready(sam: HttpService, recorder: Recorder) -> None:
    known = await sam.embed(b"file", "slow")
    assert recorder.embedded == [(b"file", "slow")]
    assert (known.image_id, known.variant, known.model) == (IMAGE_ID, "slow", "vit_t")
    assert (known.cache, known.timings_ms["embed"]) == (CacheTier.MEMORY, 3.0)
    assert (await sam.models())["variants"]["fast"] == {"model": "vit_t", "sources": ["local"]}
    assert await sam.ready()
    recorder.is_ready = False
    assert not await sam.ready()


@pytest.mark.parametrize("error", [UnknownImage("send it again", "image_id"), Overloaded("full")])
async def test_errors_keep_their_type(
    sam: HttpService, recorder: Recorder, error: SamServeError
) -> None:
    recorder.failure = error
    with pytest.raises(type(error)) as caught:
        await sam.segment(SegmentRequest(image="x", task=Everything()))
    assert (caught.value.message, caught.value.field) == (error.message, error.field)


async def test_an_unknown_error_code_is_an_internal_error() -> None:
    body = {"error": {"code": "new", "message": "something new"}}
    async with over(lambda _: httpx.Response(418, json=body)) as sam:
        with pytest.raises(InternalError, match="something new"):
            await sam.models()


@pytest.mark.parametrize(
    "response",
    [
        httpx.Response(200, text="<html>"),
        httpx.Response(502, text="bad gateway"),
        httpx.Response(404, json={"detail": "Not Found"}),
        httpx.Response(200, json=[1]),
        httpx.Response(200, json={"image_id": "x"}),
        httpx.Response(200, json={"height": 2, "width": 2, "results": None}),
    ],
)
async def test_other_services_are_told_apart(response: httpx.Response) -> None:
    async with over(lambda _: response) as sam:
        with pytest.raises(UnexpectedResponse):
            await sam.segment(SegmentRequest(image="x", task=Everything()))


@pytest.mark.parametrize(
    "segmentation", [{"size": [2, 2], "counts": "0"}, {"size": [1, 1], "counts": "1"}]
)
async def test_masks_that_do_not_fit_the_image_are_refused(segmentation: dict[str, Any]) -> None:
    mask = {"segmentation": segmentation, "score": 1, "stability_score": 1}
    body = {"height": 2, "width": 2, "image_id": "x", "variant": "v", "model": "m", "reason": "r"}
    body |= {"cache": "miss", "timings_ms": {}}
    body |= {"results": [{"masks": [mask | {"bbox": [0, 0, 1, 1], "area": 1}]}]}
    async with over(lambda _: httpx.Response(200, json=body)) as sam:
        with pytest.raises(UnexpectedResponse) as caught:
            await sam.segment(SegmentRequest(image="x", task=Everything()))
    assert re.search("do not add up|not of the image's size", str(caught.value.__cause__))


class Refusals:
    """Refuses so many times, then answers; keeps what it was asked and how long was waited."""

    def __init__(
        self, count: int, monkeypatch: pytest.MonkeyPatch, status: int = 503, wait: str = "2"
    ) -> None:
        self.left, self.status, self.wait = count, status, wait
        self.requests: list[httpx.Request] = []
        self.waits: list[float] = []
        monkeypatch.setattr(client, "_pause", self._pause)

    async def _pause(self, seconds: float) -> None:
        self.waits.append(seconds)

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        if self.left == 0:
            return httpx.Response(200, json={"variants": []})
        self.left -= 1
        error = {"error": {"code": "overloaded", "message": "full"}}
        headers = {"retry-after": self.wait} if self.wait else {}
        return httpx.Response(self.status, json=error, headers=headers)


def refused(service: Refusals, **more: Any) -> HttpService:
    return HttpService("http://sam", transport=httpx.MockTransport(service), **more)


@pytest.mark.parametrize("status", [429, 503])
async def test_a_refusal_is_waited_out_as_long_as_it_says(
    monkeypatch: pytest.MonkeyPatch, status: int
) -> None:
    service = Refusals(2, monkeypatch, status)
    async with refused(service, retries=2) as sam:
        assert await sam.models() == {"variants": []}
    assert len(service.requests) == 3
    assert all(2 <= wait <= 2.5 for wait in service.waits)
    assert len(service.waits) == 2


@pytest.mark.parametrize(
    ("count", "status", "wait", "settings", "asked"),
    [
        (1, 503, "2", {}, 1),  # unasked nobody asks twice
        (9, 503, "2", {"retries": 3}, 4),
        (1, 503, "30", {"retries": 3, "timeout_s": 20}, 1),  # longer than the caller waits
        (1, 503, "", {"retries": 3}, 1),
        (1, 503, "Wed, 21 Oct 2026 07:28:00 GMT", {"retries": 3}, 1),
        (1, 422, "2", {"retries": 3}, 1),
        (1, 500, "2", {"retries": 3}, 1),
    ],
)
async def test_what_is_not_asked_again(
    monkeypatch: pytest.MonkeyPatch,
    count: int,
    status: int,
    wait: str,
    settings: dict[str, Any],
    asked: int,
) -> None:
    service = Refusals(count, monkeypatch, status, wait)
    async with refused(service, **settings) as sam:
        with pytest.raises(Overloaded):
            await sam.models()
    assert len(service.requests) == asked


async def test_a_requests_own_time_bounds_the_attempts(
    monkeypatch: pytest.MonkeyPatch, clock: Clock
) -> None:
    service = Refusals(20, monkeypatch, wait="4")

    async def pause(seconds: float) -> None:
        service.waits.append(seconds)
        clock.now += seconds

    monkeypatch.setattr(client, "_pause", pause)
    async with refused(service, retries=5) as sam:
        with pytest.raises(Overloaded):
            await sam.segment(SegmentRequest(image="x", task=Everything(), timeout_s=3))
        assert len(service.requests) == 1
        with pytest.raises(Overloaded):
            await sam.segment(SegmentRequest(image="x", task=Everything(), timeout_s=90))
    told = [float(r.headers["x-request-timeout-seconds"]) for r in service.requests[1:]]
    left = [90 - sum(service.waits[:attempt]) for attempt in range(6)]
    assert told == pytest.approx(left, rel=1e-4)


async def test_the_key_goes_with_every_request(monkeypatch: pytest.MonkeyPatch) -> None:
    service = Refusals(0, monkeypatch)
    async with refused(service, api_key="sam_k") as sam:
        await sam.models()
    async with refused(service) as sam:
        await sam.models()
    assert [r.headers.get("authorization") for r in service.requests] == ["Bearer sam_k", None]


async def test_nobody_there() -> None:
    def refuse(_: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("refused by 10.0.0.1")

    async with over(refuse) as sam:
        assert not await sam.ready()
        with pytest.raises(Unreachable) as caught:
            await sam.models()
    assert "10.0.0.1" not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "told"),
    [
        *((url, "with http://") for url in ("127.0.0.1:8000", "localhost:8000", "sam", "", "//a")),
        *((url, "with http://") for url in ("ftp://a", "localhost:8000/v1", "://a")),
        *((url, "blanks") for url in (" http://127.0.0.1:8000", "http://a\n", "\thttp://a")),
        *((url, "without /v1") for url in ("http://a:8000/v1", "http://a/v1/", "https://a/b/v1")),
        *((url, "no host") for url in ("http://", "http:///a", "http://:80")),
    ],
)
@pytest.mark.parametrize("kind", [HttpService, SyncHttpService])
def test_what_is_wrong_with_an_address_is_said(kind: Any, url: str, told: str) -> None:
    threads = threading.active_count()
    with pytest.raises(InvalidAddress, match=re.escape(told)) as caught:
        kind(url)
    assert (caught.value.code, caught.value.field) == ("invalid_address", "url")
    assert threading.active_count() == threads


@pytest.mark.parametrize("url", ["http://a", "https://a:1/", "HTTP://a/sam", "http://[::1]:80"])
def test_other_addresses_are_taken(url: str) -> None:
    HttpService(url)


@pytest.fixture
def server() -> Iterator[str]:
    """The interface behind a real socket, with connections that are kept alive."""
    app = create_app(Recorder(), Limits(), metrics=None, version="1")  # type: ignore[arg-type]
    config = uvicorn.Config(app, port=0, log_level="error", lifespan="off")
    running = uvicorn.Server(config)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=running.run, args=([listening],), daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        running.should_exit = True
        thread.join()


REQUEST = SegmentRequest(image="a", task=TextQuery(text="dog"))


def test_one_client_serves_several_event_loops(server: str) -> None:
    sam = HttpService(server)

    async def call(close: bool) -> int:
        result = await sam.segment(REQUEST)
        if close:
            await sam.aclose()
        return len(result.results)

    assert [asyncio.run(call(close)) for close in (False, False, True, True)] == [1] * 4


def test_without_await(server: str) -> None:
    with SyncHttpService(server) as sam:
        assert sam.ready()
        assert sam.segment(REQUEST).results[0].text == "dog"
        assert sam.embed(b"1", "auto").image_id
        assert sam.embed(EmbedRequest(image=b"1")).image_id
        assert "variants" in sam.models()
        with pytest.raises(InvalidRequest, match=r"takes a SegmentRequest\(image"):
            sam.segment(b"1")  # type: ignore[arg-type]
        bad = SegmentRequest(image="a", task=TextQuery(text="dog"), variant="nothing-such")
        with pytest.raises(SamServeError):
            sam.segment(bad.model_copy(update={"variant": ""}))
    sam.close()


async def test_without_await_where_a_loop_is_running(server: str) -> None:
    """As in a notebook."""
    with SyncHttpService(server) as sam:
        assert sam.segment(REQUEST).variant


def test_a_failing_call_leaves_the_other_calls_alone() -> None:
    with SyncHttpService("http://127.0.0.1:9", timeout_s=2) as sam:
        for _ in range(2):
            with pytest.raises(Unreachable):
                sam.segment(REQUEST)
        assert not sam.ready()
