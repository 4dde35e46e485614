"""Which way calls between replicas go."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from serve_app.deployments import handles
from serve_app.deployments.handles import RemoteEncoder, RemotePredictor, SharedPixels
from serve_app.domain.types import DecodeOptions, Embedding, Prompt

CLICK = Prompt(point_coords=np.array([[1.0, 1.0]]), point_labels=np.array([1]))
MASKED = Prompt(mask_input=np.zeros((256, 256), np.float32))
PIXELS = np.zeros((2, 2, 3), np.uint8)


class _Handle:
    """Notes with which options it was called."""

    def __init__(self, answer: Any, calls: list[dict[str, Any]], **options: Any) -> None:
        self._answer, self._calls, self._options = answer, calls, options

    def options(self, **more: Any) -> _Handle:
        return _Handle(self._answer, self._calls, **{**self._options, **more})

    async def remote(self, *args: Any) -> Any:
        self._calls.append(self._options)
        return self._answer


@pytest.fixture
def calls() -> list[dict[str, Any]]:
    return []


@pytest.fixture(autouse=True)
def no_object_store(monkeypatch: pytest.MonkeyPatch) -> None:
    async def shared(pixels: Any) -> SharedPixels:
        return SharedPixels(object())

    monkeypatch.setattr(handles.SharedPixels, "of", shared)


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
    found = await RemoteEncoder(_Handle(answer, calls)).encode(SharedPixels(object()))
    assert [call.get("_by_reference") for call in calls] == [True]
    assert not np.shares_memory(found.tensors["image_embed"], tensor)
