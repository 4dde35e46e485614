"""The harness of the batcher's benchmark; its figures are not tested."""

from __future__ import annotations

import ray.serve.batching

from serve_tools.bench.batcher import BARE, OURS, EvenArrivals, run


def test_both_batchers_answer_all_requests_in_turn() -> None:
    warn = "_warn_if_max_batch_size_exceeds_max_ongoing_requests"
    before = getattr(ray.serve.batching._BatchQueue, warn)
    arrivals = EvenArrivals(requests=12, every_s=0.001, pass_s=0.005, most=4, wait_s=0.0)
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
