"""The harness of the benchmarks of batcher and embedding; their figures are no test's matter."""

from __future__ import annotations

import asyncio

import pytest
import ray.serve.batching

from serve_tools.bench import embedding_hop
from serve_tools.bench.batcher import BARE, OURS, Arrivals, run
from serve_tools.bench.embedding_hop import KINDS, embedding


def test_both_batchers_answer_all_requests_in_turn() -> None:
    warn = "_warn_if_max_batch_size_exceeds_max_ongoing_requests"
    before = getattr(ray.serve.batching._BatchQueue, warn)
    arrivals = Arrivals(requests=12, every_s=0.001, pass_s=0.005, most=4, wait_s=0.0)
    ours, bare = run(rounds=2, arrivals=arrivals)
    assert (ours.system, bare.system) == (OURS, BARE)
    assert (ours.ours, bare.ours) == (True, False)
    assert ours.case == bare.case
    for row in (ours, bare):
        assert len(row.rounds) == 2
        assert row.floor == 5
        assert 1 <= row.details["mean_batch"] <= 4
        assert row.details["total_s"] > 0.011  # the last one comes after that
    # What was taken from Ray for the time of the run is back.
    assert getattr(ray.serve.batching._BatchQueue, warn) is before


def test_the_embeddings_are_as_large_as_sams() -> None:
    assert [embedding(kind).nbytes for kind in KINDS] == [4 * 2**20, 2 * 2**20]


def test_kinds_take_turns_and_the_first_round_is_not_counted() -> None:
    order: list[str] = []

    async def note(kind: str) -> None:
        order.append(kind)

    passes = {kind: (lambda k=kind: note(k)) for kind in "ab"}
    times = asyncio.run(embedding_hop._by_turns(passes, 2))
    assert order == list("ababab")
    assert {kind: len(of_kind) for kind, of_kind in times.items()} == {"a": 2, "b": 2}


def test_without_a_redis_server_there_are_no_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serve_tools.bench.embedding_hop.shutil.which", lambda name: None)
    assert embedding_hop.redis_rows() is None
