"""How replica counts are made of what Serve's controller tells."""

from __future__ import annotations

import pytest

from serve_app.core.settings import GraphSettings, VariantSettings
from serve_app.deployments.watch import ReplicaCounts
from serve_app.routing.load_tracker import Capacity, LoadTracker


@pytest.fixture
def tracker() -> LoadTracker:
    return LoadTracker({"fast": Capacity(0, 0), "small": Capacity(0, 0)}, {})


@pytest.fixture
def counts(tracker: LoadTracker) -> ReplicaCounts:
    variants = {
        "fast": VariantSettings(model="vit_t"),
        "small": VariantSettings(model="vit_t", layout="fused"),
    }
    return ReplicaCounts(GraphSettings(variants=variants), tracker)


def _seen(tracker: LoadTracker, variant: str) -> tuple[int, int]:
    found = tracker.variant_state(variant, "8x8-0", 0.0)
    return found.encoders, found.decoders


def test_each_half_counts_for_itself(counts: ReplicaCounts, tracker: LoadTracker) -> None:
    counts.update("fast-encoder", 2)
    assert _seen(tracker, "fast") == (2, 0)
    counts.update("fast-decoder", 3)
    assert _seen(tracker, "fast") == (2, 3)
    counts.update("fast-encoder", 0)
    assert _seen(tracker, "fast") == (0, 3)


def test_a_fused_decoder_is_an_encoder_too(counts: ReplicaCounts, tracker: LoadTracker) -> None:
    assert "small-encoder" not in counts.deployments
    counts.update("small-decoder", 1)
    assert _seen(tracker, "small") == (1, 1)
    assert _seen(tracker, "fast") == (0, 0)


def test_what_runs_is_known_of_all_deployments(counts: ReplicaCounts, tracker: LoadTracker) -> None:
    assert not counts.runs("proposals")
    counts.update("proposals", 1)
    counts.update("fast-decoder", 1)
    assert counts.runs("proposals", "fast-decoder")
    assert not counts.runs("fast-decoder", "fast-encoder")
    counts.update("proposals", 0)
    assert not counts.runs("proposals")
    assert _seen(tracker, "fast") == (0, 1)
