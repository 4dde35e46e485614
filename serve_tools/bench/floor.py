"""The floor: floating-point operations of a pass divided by the measured matrix peak."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import cache

import numpy as np
import torch

from serve_app.engines.openvino import op, ov
from serve_app.engines.openvino.runtime import core, cpu_options

DECODER_AS_WRITTEN = 3.62e9
"""Floating-point operations a prompt of SAM's mask decoder, as `segment_anything` computes it."""

DECODER_REWRITTEN = 1.8e9
"""The same with the image side of the first layer computed once an image, the other attention
products reassociated, and three masks upscaled (about)."""

_SIDE = 2048


def matrix_product(threads: int, side: int = _SIDE) -> Callable[[], object]:
    """A pass of one fp32 product of square matrices on the given threads.

    By torch or by OpenVINO, whichever is faster here: torch's library knows some makers'
    processors only half.
    """
    passes = [_torch_product(threads, side), _openvino_product(threads, side)]
    return min(passes, key=_best_seconds)


def _torch_product(threads: int, side: int) -> Callable[[], object]:
    left, right = torch.rand(side, side), torch.rand(side, side)
    out = torch.empty(side, side)

    def run() -> object:
        torch.set_num_threads(threads)
        return torch.mm(left, right, out=out)

    return run


def _openvino_product(threads: int, side: int) -> Callable[[], object]:
    left = op.parameter([side, side], np.float32)
    # One side constant, as weights are.
    right = op.constant(np.random.default_rng(0).random((side, side), np.float32))
    graph = ov.Model([op.matmul(left, right, False, False)], [left])
    request = core().compile_model(graph, "CPU", cpu_options(threads)).create_infer_request()
    given = np.random.default_rng(1).random((side, side), np.float32)
    return lambda: request.infer([given], share_inputs=True, share_outputs=True)


def _best_seconds(run: Callable[[], object], repeats: int = 3) -> float:
    run()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return min(times)


def matrix_flops(side: int = _SIDE) -> float:
    """Operations of one such product."""
    return 2.0 * side**3


def matrix_peak(threads: int, repeats: int = 8) -> float:
    """Floating-point operations a second, the best of some products: it is a ceiling."""
    return matrix_flops() / _best_seconds(matrix_product(threads), repeats)


@cache
def encoder_flops(architecture: str) -> float:
    """Operations of one 1024 x 1024 image, counted on tensors without contents."""
    from torch.utils.flop_counter import FlopCounterMode

    from serve_app.engines.sam.frame import IMAGE_SIZE
    from serve_app.engines.sam.model import build_sam

    with torch.device("meta"):
        encoder = build_sam(architecture).image_encoder
        image = torch.empty(1, 3, IMAGE_SIZE, IMAGE_SIZE)
    counter = FlopCounterMode(display=False)
    with counter, torch.inference_mode():
        encoder(image)
    return float(counter.get_total_flops())


def busiest(run: Callable[[], object], most: int = 3) -> str:
    """The operators that a pass spends its time in, with their shares of its wall time.

    Time in engines other than torch counts as outside its operators.
    """
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU]) as seen:
        start = time.perf_counter()
        run()
        wall_us = (time.perf_counter() - start) * 1e6
    events = sorted(seen.key_averages(), key=lambda e: -e.self_cpu_time_total)
    parts = [
        f"{event.key.removeprefix('aten::')[:40]} {event.self_cpu_time_total / wall_us:.0%}"
        for event in events[:most]
        if event.self_cpu_time_total > 0.05 * wall_us
    ]
    inside = sum(event.self_cpu_time_total for event in events)
    if inside < 0.8 * wall_us:
        parts.append(f"outside torch's operators {1 - inside / wall_us:.0%}")
    return ", ".join(parts)
