"""The benchmark's contenders with MobileSAM's weights: they do the same work.  Not timed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from serve_app.core.inference import Embedding
from serve_app.core.settings import GraphSettings
from serve_app.core.types import BoolArray
from serve_app.models.factory import ModelSource
from serve_tools.bench import decoder, encoder, gpu
from serve_tools.bench.floor import DECODER_AS_WRITTEN, encoder_flops
from serve_tools.bench.photos import Photos, load_photos

from .cases import TWO_THREADS

pytestmark = pytest.mark.weights


@pytest.fixture(scope="module")
def photos() -> Photos:
    return load_photos(size=(360, 240))


@pytest.fixture(scope="module")
def checkpoint(weight_paths: Callable[[str], dict[str, Path]]) -> Path:
    return weight_paths("vit_t")["checkpoint"]


@pytest.fixture(scope="module")
def embedding(checkpoint: Path, photos: Photos) -> Embedding:
    engine = ModelSource().load_encoder("vit_t", TWO_THREADS)
    return engine.encode_batch([photos.known[0].pixels])[0]


def test_encoders_take_their_turns(
    checkpoint: Path, photos: Photos, one_variant: Callable[..., GraphSettings]
) -> None:
    pixels = photos.known[0].pixels
    ours, flops, _ = encoder.load_ours(one_variant("vit_t"))
    peers = encoder.load_peers("vit_t", checkpoint, pixels, 2, [encoder.EAGER])
    assert all(name.startswith("ours: golden (vit_t, ") for name in ours)
    rows = encoder.run(ours, peers, pixels, threads=2, flops=flops, rounds=1)
    first, *_, eager, peak = rows
    assert first.ours
    assert first.floor is not None
    assert len(first.rounds) == len(eager.rounds) == 1
    assert (eager.system, eager.ours) == (encoder.EAGER, False)
    assert "conv" in eager.dominates or "mm" in eager.dominates
    assert peak.unit == "GFLOP/s"


def test_encoders_of_peers_give_our_embedding(
    checkpoint: Path, photos: Photos, embedding: Embedding
) -> None:
    """Else their time would be that of another piece of work."""
    pytest.importorskip("onnx")
    pixels = photos.known[0].pixels
    peers = encoder.load_peers("vit_t", checkpoint, pixels, 2, [encoder.ONNX])
    found: Any = peers[encoder.ONNX]()
    ours = embedding.tensors["image_embed"].astype(np.float32)
    assert np.abs(found[0][0] - ours).max() < 1e-2


def test_decoders_answer_alike(checkpoint: Path, embedding: Embedding) -> None:
    engine = ModelSource().load_decoder("vit_t", TWO_THREADS)
    same = ("vit_t", checkpoint, embedding)
    clicks = decoder.clicks_on(embedding, 2)
    ours: Any = decoder.ours(engine, embedding).decode(clicks)
    contenders = {decoder.OURS: decoder.ours(engine, embedding)}
    contenders[decoder.EAGER] = decoder.eager(*same)
    eager: Any = contenders[decoder.EAGER].decode(clicks)
    _check_alike(ours, eager[0].numpy())
    rows = decoder.run(contenders, embedding, threads=2, sizes=(1, 2), rounds=1, profile=False)
    assert [(r.case, r.system, r.ours) for r in rows] == [
        (case, name, name == decoder.OURS) for case in ("1 prompt", "2 prompts")
        for name in contenders
    ]  # fmt: skip


def test_the_exported_decoder_answers_alike(checkpoint: Path, embedding: Embedding) -> None:
    pytest.importorskip("onnx")
    engine = ModelSource().load_decoder("vit_t", TWO_THREADS)
    clicks = decoder.clicks_on(embedding, 2)
    ours: Any = decoder.ours(engine, embedding).decode(clicks)
    answers: Any = decoder.exported("vit_t", checkpoint, embedding, 2).decode(clicks)
    # It answers the mask for one object as well, first.
    _check_alike(ours, np.stack([masks[0, -3:] > 0 for masks, *_ in answers]))


def _check_alike(ours: Any, others: BoolArray) -> None:
    for masks, their in zip(ours, others, strict=True):
        for mask, other in zip(masks, their, strict=True):
            both, either = np.sum(mask.array & other), np.sum(mask.array | other)
            assert both >= 0.98 * either


def test_work_is_what_the_floors_count(checkpoint: Path, embedding: Embedding) -> None:
    assert encoder_flops("vit_t") == pytest.approx(77.5e9, rel=0.01)
    contender = decoder.eager("vit_t", checkpoint, embedding)
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        contender.decode(decoder.clicks_on(embedding, 1))
    assert counter.get_total_flops() == pytest.approx(DECODER_AS_WRITTEN, rel=0.05)


def test_the_script_for_gpus_runs_dry() -> None:
    rows, notes = gpu.run(gpu.GpuPlan.dry("cpu"))
    assert [r.case for r in rows if r.ours] == ["vit_t, 1 images", "1 prompts", "2 prompts"]
    assert {r.system for r in rows} == {gpu.OURS, gpu.EAGER, gpu.EAGER_HALF}
    assert all(r.floor is not None and len(r.rounds) == 1 for r in rows)
    assert notes[0].startswith("Peak: ")
