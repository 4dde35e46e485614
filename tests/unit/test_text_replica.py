"""Scoring many candidates: in parts, so that others have their turn."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from serve_app.core.inference import Candidate, TextScores
from serve_app.core.settings import TextSettings
from serve_app.core.types import RgbArray, UnknownText
from serve_app.deployments.engines import TextReplica

from ..fakes.engines import FakeSource

PIXELS = np.zeros((4, 4, 3), np.uint8)
AT_ONCE = TextSettings().open_clip.batch_size
MANY = [Candidate(bbox=(i, 0, 1, 1)) for i in range(2 * AT_ONCE + 1)]


class Engine:
    """Scores a candidate by its place; where it is gated, each pass waits until it is let go."""

    device = "cpu"

    def __init__(self) -> None:
        self.passes: list[int] = []
        self.info = SimpleNamespace(engine="places")
        self.gated = False
        self._begun = threading.Semaphore(0)
        self._go = threading.Semaphore(0)

    def unknown(self, texts: Sequence[str]) -> tuple[UnknownText | None, ...]:
        return tuple(UnknownText(reason=text, message="") if text else None for text in texts)

    def score(
        self, pixels: RgbArray, candidates: Sequence[Candidate], texts: Sequence[str]
    ) -> TextScores:
        self.passes.append(len(candidates))
        self._begun.release()
        assert not self.gated or self._go.acquire(timeout=60)
        places = [[c.bbox[0] + 1000 * i for c in candidates] for i in range(len(texts))]
        scores = np.array(places, np.float32).reshape(len(texts), len(candidates))
        return TextScores(scores=scores, engine="places", threshold=0.5)

    async def begun(self) -> None:
        """Another pass has begun."""
        assert await asyncio.to_thread(self._begun.acquire, timeout=60)

    def let_go(self) -> None:
        """One pass may end."""
        self._go.release()


@pytest.fixture
def engine() -> Engine:
    return Engine()


def replica(engine: Engine) -> Any:
    return TextReplica(TextSettings(), FakeSource(text=engine))


async def test_parts_are_put_together_in_order(engine: Engine) -> None:
    found = await replica(engine).score(PIXELS, MANY, ["a", "b"])
    assert engine.passes == [AT_ONCE, AT_ONCE, 1]
    np.testing.assert_array_equal(found.scores[0], np.arange(len(MANY)))
    np.testing.assert_array_equal(found.scores[1], 1000 + np.arange(len(MANY)))
    assert (found.engine, found.threshold) == ("places", 0.5)


async def test_without_candidates_there_are_no_scores(engine: Engine) -> None:
    found = await replica(engine).score(PIXELS, [], ["a", "b"])
    assert found.scores.shape == (2, 0)


async def test_the_engine_says_of_each_text_why_it_is_unknown(engine: Engine) -> None:
    found = await replica(engine).unknown(["", "why"])
    assert found == (None, UnknownText(reason="why", message=""))
    assert engine.passes == []


async def test_others_come_between_and_who_leaves_ends_it(engine: Engine) -> None:
    text = replica(engine)
    engine.gated = True
    long = asyncio.create_task(text.score(PIXELS, MANY, ["a"]))
    await engine.begun()
    short = asyncio.create_task(text.score(PIXELS, MANY[:1], ["a"]))
    await asyncio.sleep(0)  # now it is queued
    engine.let_go()
    await engine.begun()
    assert engine.passes == [AT_ONCE, 1]
    engine.let_go()
    await short
    await engine.begun()
    long.cancel()
    with pytest.raises(asyncio.CancelledError):
        await long
    engine.let_go()
    await text._thread.run(int)  # after what was queued
    assert engine.passes == [AT_ONCE, 1, AT_ONCE]
