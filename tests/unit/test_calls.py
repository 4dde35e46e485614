"""Which way calls between replicas go, and what becomes of those that are lost or left."""

from __future__ import annotations

import asyncio
import pickle
from collections.abc import Generator
from typing import Any

import grpc
import numpy as np
import pytest
from ray.exceptions import ActorDiedError, ActorUnavailableError, ObjectLostError, RayTaskError
from ray.serve.exceptions import BackPressureError

from serve_app.core.deadline import deadline
from serve_app.core.errors import InvalidPrompt, Overloaded, ReplicaLost
from serve_app.core.inference import DecodeOptions, Embedding
from serve_app.core.types import Prompt, UnknownText
from serve_app.deployments.calls import (
    ImageObjectRef,
    RemoteEncoder,
    RemotePredictor,
    RemoteTextScorer,
    await_response,
    call_with_retry,
)
from serve_app.telemetry.metrics import RETRIES

CLICK = Prompt(point_coords=np.array([[1.0, 1.0]]), point_labels=np.array([1]))
MASKED = Prompt(mask_input=np.zeros((256, 256), np.float32))
PIXELS = np.zeros((2, 2, 3), np.uint8)


class _Handle:
    """Notes with which options it was called."""

    def __init__(self, answer: Any, calls: list[dict[str, Any]], **options: Any) -> None:
        self._answer, self._calls, self._options = answer, calls, options

    def options(self, **more: Any) -> _Handle:
        return _Handle(self._answer, self._calls, **{**self._options, **more})

    def remote(self, *args: Any) -> Any:
        self._calls.append(self._options)
        return _Response(self._answer)


@pytest.fixture
def calls() -> list[dict[str, Any]]:
    return []


@pytest.fixture(autouse=True)
def no_object_store(monkeypatch: pytest.MonkeyPatch) -> None:
    async def shared(pixels: Any) -> ImageObjectRef:
        return ImageObjectRef(object())

    monkeypatch.setattr(ImageObjectRef, "put", shared)


async def test_the_text_replica_is_asked_what_is_unknown(calls: list[dict[str, Any]]) -> None:
    verdicts = (None, UnknownText(reason="negation", message=""))
    handle: Any = _Handle(None, calls)
    handle.unknown = _Handle(verdicts, calls)
    assert await RemoteTextScorer(handle).unknown(["cat", "no cat"]) == verdicts


async def test_a_prompt_on_a_known_image_is_a_small_message(calls: list[dict[str, Any]]) -> None:
    await RemotePredictor(_Handle(None, calls)).predict("8x8-a", None, [CLICK], DecodeOptions())
    assert calls == [{"method_name": "predict", "session_id": "8x8-a"}]


@pytest.mark.parametrize(
    ("pixels", "prompts", "options"),
    [
        (PIXELS, [CLICK], DecodeOptions()),
        (None, [MASKED], DecodeOptions()),
        (None, [CLICK] * 17, DecodeOptions()),
        (None, [CLICK], DecodeOptions(return_logits=True)),
    ],
    ids=["an image", "logits in", "many prompts", "logits out"],
)
async def test_what_may_be_large_or_holds_a_reference_is_an_actor_call(
    calls: list[dict[str, Any]], pixels: Any, prompts: list[Prompt], options: DecodeOptions
) -> None:
    await RemotePredictor(_Handle(None, calls)).predict("8x8-a", pixels, prompts, options)
    assert [call.get("_by_reference") for call in calls] == [True]


async def test_embeddings_come_by_reference_and_are_kept_by_value(
    calls: list[dict[str, Any]],
) -> None:
    tensor = np.ones((1, 2, 2), np.float32)
    answer = Embedding({"image_embed": tensor}, height=2, width=2)
    found = await RemoteEncoder(_Handle(answer, calls)).encode(ImageObjectRef(object()))
    assert [call.get("_by_reference") for call in calls] == [True]
    assert not np.shares_memory(found.tensors["image_embed"], tensor)


class _Response:
    """Gives an answer, raises, or never comes; knows whether it was cancelled."""

    def __init__(self, outcome: Any = None, never: bool = False) -> None:
        self._outcome, self._never = outcome, never
        self.cancelled = False

    def __await__(self) -> Generator[Any, None, Any]:
        if self._never:
            yield from asyncio.Event().wait().__await__()
        if isinstance(self._outcome, BaseException):
            raise self._outcome
        return self._outcome

    def cancel(self) -> None:
        self.cancelled = True


def _sends(*outcomes: Any) -> tuple[Any, list[_Response]]:
    """What sends calls with these outcomes in turn, and the responses that it gave."""
    waiting, given = list(outcomes), []

    def send() -> _Response:
        given.append(_Response(waiting.pop(0)))
        return given[-1]

    return send, given


def _rpc_error(code: grpc.StatusCode) -> grpc.aio.AioRpcError:
    nothing = grpc.aio.Metadata()
    return grpc.aio.AioRpcError(code, nothing, nothing)


def _lost() -> list[BaseException]:
    return [
        ActorDiedError(),
        ActorUnavailableError("gone", b"\0" * 16),
        ObjectLostError("0" * 56, None, ""),
        _rpc_error(grpc.StatusCode.UNAVAILABLE),
        _rpc_error(grpc.StatusCode.CANCELLED),
        asyncio.CancelledError(),  # of the call, by another than the caller
    ]


@pytest.mark.parametrize("fault", _lost(), ids=lambda f: f"{type(f).__name__}")
async def test_a_call_whose_replica_is_lost_is_made_again(fault: BaseException) -> None:
    send, given = _sends(fault, "masks")
    assert await call_with_retry("decoder", send) == "masks"
    assert len(given) == 2


async def test_it_is_made_again_once() -> None:
    send, given = _sends(ActorDiedError(), ActorDiedError(), "masks")
    with pytest.raises(ReplicaLost):
        await call_with_retry("decoder", send)
    assert len(given) == 2


async def test_without_time_it_is_not_made_again() -> None:
    send, given = _sends(ActorDiedError(), "masks")
    with deadline(-1.0), pytest.raises(ReplicaLost):
        await call_with_retry("decoder", send)
    assert len(given) == 1


@pytest.mark.parametrize(
    ("fault", "told"),
    [
        (RayTaskError("predict", "trace", InvalidPrompt("no", "box")), InvalidPrompt),
        (BackPressureError(num_queued_requests=1, max_queued_requests=1), Overloaded),
        (_rpc_error(grpc.StatusCode.RESOURCE_EXHAUSTED), grpc.aio.AioRpcError),
        (RayTaskError("predict", "trace", KeyError("x")), RayTaskError),
        (RayTaskError("predict", "trace", ReplicaLost("behind it")), ReplicaLost),
        (ReplicaLost("behind it, over gRPC"), ReplicaLost),
    ],
    ids=["a caller's fault", "full", "too large", "a fault of ours", "lost there", "there, gRPC"],
)
async def test_what_would_fail_again_is_not_made_again(
    fault: BaseException, told: type[Exception]
) -> None:
    send, given = _sends(fault, "masks")
    with pytest.raises(told):
        await call_with_retry("decoder", send)
    assert len(given) == 1


async def test_whoever_stops_waiting_cancels_the_call() -> None:
    response: Any = _Response(never=True)
    waiting = asyncio.create_task(await_response(response))
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert response.cancelled


async def test_a_deadline_cancels_the_call_and_does_not_make_it_again() -> None:
    given: list[_Response] = []

    def send() -> Any:
        given.append(_Response(never=True))
        return given[-1]

    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await call_with_retry("decoder", send)
    assert [response.cancelled for response in given] == [True]


def _sent(error: Exception) -> Exception:
    """An error as another process gets it."""
    sent: Exception = pickle.loads(pickle.dumps(error))  # noqa: S301 (our own)
    return sent


async def test_of_one_loss_each_hop_on_the_way_makes_nothing_of_its_own() -> None:
    """An encoder that kills whatever runs it is asked twice, however many stand before it."""
    asked = 0

    def encode() -> _Response:
        nonlocal asked
        asked += 1
        return _Response(ActorDiedError())

    class Decoder(_Response):
        def __await__(self) -> Generator[Any, None, Any]:
            try:
                return (yield from call_with_retry("encoder", encode).__await__())
            except ReplicaLost as lost:  # as it comes out of a process
                raise RayTaskError("predict", "trace", _sent(lost)) from None

    with pytest.raises(ReplicaLost) as told:
        await call_with_retry("decoder", Decoder)
    assert asked == 2
    assert type(_sent(told.value)) is ReplicaLost


@pytest.mark.parametrize(
    ("second", "outcome"),
    [
        ("masks", "ok"),
        (ActorDiedError(), "failed"),
        (RayTaskError("predict", "trace", InvalidPrompt("no", "box")), "ok"),
        (None, "left"),
    ],
)
async def test_what_became_of_a_second_call_is_counted(
    second: Any, outcome: str, counted: Any
) -> None:
    responses = [_Response(ActorDiedError()), _Response(second, never=second is None)]
    asking = asyncio.create_task(call_with_retry("decoder", lambda: responses.pop(0)))
    for _ in range(5):
        await asyncio.sleep(0)
    asking.cancel()
    await asyncio.wait([asking])
    assert counted.of(RETRIES, callee="decoder", outcome=outcome) == counted.of(RETRIES) == 1
