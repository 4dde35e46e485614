"""The judges of `tests.chaos` find what they are there for."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ..chaos.load import Client, Ledger, Outcome, answer_digest, quantile
from ..chaos.processes import open_files, pss_bytes, slope_per_min
from ..chaos.questions import Mix, batch, bmp, new_image
from ..chaos.report import Report
from ..chaos.soak import Watch

GOOD = Outcome("a", "new", "q", 1.0, 1.5, 3.0, 200, digest="x")


def ledger(*outcomes: Outcome) -> Ledger:
    made = Ledger()
    for outcome in outcomes:
        made.opened(outcome.request_id)
        made.closed(outcome, outcome.request_id)
    return made


def test_each_id_has_one_outcome() -> None:
    made = ledger(GOOD)
    assert made.unanswered == 0
    with pytest.raises(AssertionError):
        made.opened("a")
    with pytest.raises(AssertionError):
        made.closed(GOOD, "a")
    with pytest.raises(AssertionError):
        made.closed(replace(GOOD, request_id="never sent"), None)
    made.opened("b")
    assert made.unanswered == 1
    made.closed(replace(GOOD, request_id="b"), "of another")
    assert made.unanswered == 1


def test_two_answers_to_one_question_are_found() -> None:
    same = replace(GOOD, request_id="b")
    other = replace(GOOD, request_id="c", digest="y")
    assert ledger(GOOD, same).contradictions() == 0
    assert ledger(GOOD, other).contradictions() == 1
    assert ledger(GOOD, replace(other, key="another question")).contradictions() == 0


def test_latency_counts_from_when_a_request_was_due() -> None:
    assert (GOOD.took_ms, GOOD.lag_ms) == (2000.0, 500.0)


def test_a_digest_is_of_masks_not_of_circumstances() -> None:
    one = answer_digest("/v1/segment", b'{"results": [1], "cache": "miss", "reason": "a"}')
    assert one == answer_digest("/v1/segment", b'{"results": [1], "cache": "memory"}')
    assert one != answer_digest("/v1/segment", b'{"results": [2], "cache": "miss"}')


async def test_no_answer_is_an_outcome() -> None:
    server = await asyncio.start_server(lambda reader, writer: writer.close(), "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with server, Client(f"http://127.0.0.1:{port}") as client:
        outcome = await client.ask(new_image())
    assert (outcome.status, outcome.code) == (0, "ServerDisconnectedError")
    assert client.ledger.unanswered == 0


def test_a_broken_bound_is_the_exit_status(tmp_path: Path) -> None:
    report = Report()
    report.at_most("5", "kept", 1.0, 2.0, "ms")
    assert report.finish(tmp_path / "table.md") == 0
    report.at_least("5", "missed", 1.0, 2.0)
    report.at_most("5", "unknown", float("nan"), 2.0)
    assert report.finish(tmp_path / "table.md") == 1
    assert [row.measure for row in report.broken] == ["missed", "unknown"]
    assert (tmp_path / "table.md").read_text().count("**NO**") == 2


def test_a_slope_is_found_in_noise() -> None:
    seconds = np.arange(0.0, 300.0, 2.0)
    noise = np.random.default_rng(0).normal(0, 0.5, len(seconds))
    assert slope_per_min(list(seconds), list(100 + noise)) == pytest.approx(0, abs=0.2)
    assert slope_per_min(list(seconds), list(100 + noise + seconds / 30)) == pytest.approx(
        2, abs=0.2
    )


def test_the_watch_leaves_the_warm_up_out() -> None:
    watch = Watch({"a 1": 1})
    watch.at_s = [float(s) for s in range(0, 120, 2)]
    watch.memory = {"a 1": [min(s, 60.0) for s in watch.at_s]}
    watch.files = {"a 1": [10 + (s > 90) * 7 for s in watch.at_s]}
    assert watch.slope("a 1", 0) > 10
    assert watch.slope("a 1", 60) == pytest.approx(0, abs=1e-9)
    assert watch.files_moved("a 1", 60) == 7


def test_this_process_has_memory_and_files() -> None:
    import os

    assert pss_bytes(os.getpid()) > 2**20
    assert open_files(os.getpid()) >= 3
    assert pss_bytes(2**22 + 1) == open_files(2**22 + 1) == 0


def test_quantiles_are_of_values_that_there_were() -> None:
    assert quantile([3, 1, 2], 0.99) == 3
    assert quantile(range(100), 0.5) == 50


def test_images_are_files_and_no_two_alike(tmp_path: Path) -> None:
    for number in (1, 2):
        (tmp_path / f"{number}.bmp").write_bytes(bmp(number, (64, 48)))
    one, two = (np.asarray(Image.open(tmp_path / f"{n}.bmp")) for n in (1, 2))
    assert one.shape == (48, 64, 3)
    assert (one != two).any()


def test_a_mix_has_all_kinds() -> None:
    mix = Mix()
    asks = [mix() for _ in range(80)]
    assert {ask.kind for ask in asks} == {"new", "known", "text", "everything"}
    assert len({ask.key for ask in asks if ask.kind == "new"}) == 20
    assert batch(3).body.count(b"filename=") == 3
