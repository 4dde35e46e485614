"""Section h: encoders and the decoder on a GPU, in bf16, compiled and as CUDA graphs.

::

    python -m serve_tools.bench.gpu --json out/gpu.json
    python -m serve_tools.bench.gpu --device cpu --dry-run     # the same code on small inputs

Weights are random, which does not change the time.  Encoder passes use tensors on the device, so
that reading photos is not measured; the decoder's are the service's ``decode_batch`` including
full-size masks as RLE, against eager passes without them.
"""

from __future__ import annotations

import argparse
import gc
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from segment_anything.modeling import Sam
from torch import Tensor

from serve_app.core.inference import Embedding
from serve_app.core.settings import Compute
from serve_app.engines.sam.decoder import SamDecoder
from serve_app.engines.sam.encoder import compiled_pass
from serve_app.engines.sam.frame import IMAGE_SIZE
from serve_app.engines.sam.model import build_sam
from serve_tools.bench.decoder import clicks_on, jobs_at
from serve_tools.bench.floor import DECODER_AS_WRITTEN, DECODER_REWRITTEN, encoder_flops
from serve_tools.bench.machine import this_machine
from serve_tools.bench.report import markdown
from serve_tools.bench.rows import Report, Row, Section
from serve_tools.profiling.timing import interleaved

OURS, EAGER, EAGER_HALF = "ours", "segment_anything, eager fp32", "segment_anything, eager bf16"

_PEAKS = {
    "H100": 989e12, "H200": 989e12, "A100": 312e12, "L40S": 362e12, "L4": 121e12,
    "RTX 4090": 165e12,
}  # fmt: skip
"""Dense bf16 operations a second with fp32 sums, as NVIDIA's data sheets (SXM) state them."""

_SIZE = (1200, 1800)


@dataclass(frozen=True)
class GpuPlan:
    """What is measured.

    Attributes:
        product: side of the matrices in the product that measures the peak.
        dtype: of ours and of the second eager row; CPUs without matrix units take seconds in bf16.
    """

    device: str = "cuda"
    architectures: tuple[str, ...] = ("vit_t", "vit_b", "vit_h")
    images: tuple[int, ...] = (1, 8, 32)
    prompts: tuple[int, ...] = (1, 8, 32)
    rounds: int = 5
    budget_s: float = 20.0
    product: int = 8192
    compiled: bool = True
    dtype: torch.dtype = torch.bfloat16

    @classmethod
    def dry(cls, device: str) -> GpuPlan:
        """A pass of each kind with the smallest model, not compiled: checks the script."""
        dtype = torch.float32 if device == "cpu" else torch.bfloat16
        return cls(device, ("vit_t",), (1,), (1, 2), 1, 0.0, 64, compiled=False, dtype=dtype)


def run(
    plan: GpuPlan, say: Callable[[str], None] = lambda text: None
) -> tuple[list[Row], list[str]]:
    """Images and prompts a second, and shares of the chip's peak; rows and notes."""
    device = torch.device(plan.device)
    measured = _measured_peak(device, plan.product)
    peak, source = measured, "the measured bf16 matrix product"
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
        known = [flops for chip, flops in _PEAKS.items() if chip in name]
        if known:
            peak, source = known[0], f"the data sheet's for {name}"
    notes = [
        f"Peak: {peak / 1e12:,.1f} TFLOP/s in bf16, {source}; a matrix product of side "
        f"{plan.product} reaches {measured / 1e12:,.1f}."
    ]
    rows: list[Row] = []
    for architecture in plan.architectures:
        for count in plan.images:
            say(f"{architecture}, {count} images")
            rows += _encoder(architecture, count, plan, peak, notes)
            _free()
    # The decoder is the same in all of SAM's models.
    for count in plan.prompts:
        say(f"{count} prompts")
        rows += _decoder(count, plan, peak, notes)
        _free()
    return rows, notes


def _encoder(
    architecture: str, count: int, plan: GpuPlan, peak: float, notes: list[str]
) -> list[Row]:
    images = torch.randn(count, 3, IMAGE_SIZE, IMAGE_SIZE, device=plan.device)
    half = images.to(plan.dtype, memory_format=torch.channels_last)

    def ours() -> Callable[[], object]:
        encoder = build_sam(architecture).image_encoder.to(
            plan.device, plan.dtype, memory_format=torch.channels_last
        )
        one = compiled_pass(encoder, torch.device(plan.device)) if plan.compiled else encoder
        return lambda: one(half)

    def eager(dtype: torch.dtype) -> Callable[[], object]:
        encoder = build_sam(architecture).image_encoder.to(plan.device, dtype)
        given = images.to(dtype)
        return lambda: encoder(given)

    makers = {
        OURS: ours,
        EAGER: lambda: eager(torch.float32),
        EAGER_HALF: lambda: eager(plan.dtype),
    }
    flops = dict.fromkeys(makers, encoder_flops(architecture))
    case = f"{architecture}, {count} images"
    return _rows(case, "images/s", count, makers, flops, plan, peak, notes)


def _decoder(count: int, plan: GpuPlan, peak: float, notes: list[str]) -> list[Row]:
    features = np.random.default_rng(0).normal(size=(256, 64, 64)).astype(np.float32)
    embedding = Embedding({"image_embed": features}, *_SIZE)
    clicks = clicks_on(embedding, count)

    def ours() -> Callable[[], object]:
        dtype = "bfloat16" if plan.device != "cpu" else "float32"
        compute = Compute(device=plan.device, dtype=dtype)
        decoder = SamDecoder(build_sam("vit_t", with_encoder=False), compute)
        jobs = jobs_at(embedding, clicks)
        return lambda: decoder.decode_batch(jobs)

    def eager() -> Callable[[], object]:
        sam = build_sam("vit_t", with_encoder=False).to(plan.device)
        points = torch.from_numpy(clicks * (IMAGE_SIZE / max(_SIZE)))[:, None].float()
        points = points.to(plan.device)
        known = torch.from_numpy(features)[None].to(plan.device)
        return lambda: _predict(sam, known, points)

    makers = {OURS: ours, EAGER: eager}
    flops = {OURS: DECODER_REWRITTEN, EAGER: DECODER_AS_WRITTEN}
    return _rows(f"{count} prompts", "prompts/s", count, makers, flops, plan, peak, notes)


def _predict(sam: Sam, features: Tensor, points: Tensor) -> Tensor:
    """What `SamPredictor.predict_torch` does."""
    labels = torch.ones(points.shape[:2], device=points.device)
    sparse, dense = sam.prompt_encoder((points, labels), None, None)
    low, _ = sam.mask_decoder(features, sam.prompt_encoder.get_dense_pe(), sparse, dense, True)
    height, width = _SIZE
    scale = IMAGE_SIZE / max(_SIZE)
    inside = (int(height * scale + 0.5), int(width * scale + 0.5))
    full = torch.nn.functional.interpolate(low, (IMAGE_SIZE, IMAGE_SIZE), mode="bilinear")
    cropped = full[..., : inside[0], : inside[1]]
    return torch.nn.functional.interpolate(cropped, _SIZE, mode="bilinear") > 0


def _rows(
    case: str,
    unit: str,
    count: int,
    makers: dict[str, Callable[[], Callable[[], object]]],
    flops: dict[str, float],
    plan: GpuPlan,
    peak: float,
    notes: list[str],
) -> list[Row]:
    device = torch.device(plan.device)
    passes: dict[str, Callable[[], object]] = {}
    for name, make in makers.items():
        try:
            one = _finished(make(), device)
            if plan.compiled:
                one()  # for a minute or so
            passes[name] = one
        except (torch.OutOfMemoryError, MemoryError):
            notes.append(f"{case}: too little memory for {name}.")
            _free()
    times = interleaved(
        passes, repeats=plan.rounds, budget_s=plan.budget_s, seed=0,
        too_large=(torch.OutOfMemoryError,),
    )  # fmt: skip
    return [
        Row(
            case=case, system=name, ours=name == OURS, unit=unit, higher_is_better=True,
            rounds=tuple(1e3 * count / ms for ms in taken), floor=peak / flops[name],
        )
        for name, taken in times.items() if taken
    ]  # fmt: skip


def _finished(one: Callable[[], object], device: torch.device) -> Callable[[], object]:
    """The pass with the device's work done when it returns."""

    @torch.inference_mode()
    def whole() -> object:
        done = one()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return done

    return whole


def _measured_peak(device: torch.device, side: int) -> float:
    left, right = (torch.randn(side, side, device=device, dtype=torch.bfloat16) for _ in "ab")
    product = _finished(lambda: left @ right, device)
    product()
    best = float("inf")
    for _ in range(10):
        start = time.perf_counter()
        product()
        best = min(best, time.perf_counter() - start)
    return 2.0 * side**3 / best


def _free() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def main(argv: Sequence[str] | None = None) -> int:
    """Run the section alone and print it."""
    parser = argparse.ArgumentParser(description="encoders and the decoder on one device")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--dry-run", action="store_true", help="next to nothing of each kind")
    parser.add_argument("--architecture", action="append", choices=GpuPlan.architectures)
    parser.add_argument("--images", action="append", type=int, help="in a pass; may be repeated")
    parser.add_argument("--eager", action="store_true", help="compile nothing: that takes minutes")
    parser.add_argument("--seconds", type=float, help="for all rounds of one case")
    parser.add_argument("--json", type=Path, metavar="FILE")
    args = parser.parse_args(argv)
    plan = GpuPlan.dry(args.device) if args.dry_run else GpuPlan(device=args.device)
    if args.architecture:
        plan = replace(plan, architectures=tuple(args.architecture))
    if args.images:
        plan = replace(plan, images=tuple(args.images))
    if args.eager:
        plan = replace(plan, compiled=False)
    if args.seconds is not None:
        plan = replace(plan, budget_s=args.seconds)
    rows, notes = run(plan, lambda text: print(text, file=sys.stderr, flush=True))
    section = Section(key="h", title="GPU", rows=tuple(rows), notes=tuple(notes))
    report = Report(machine=this_machine(torch.get_num_threads()), sections=(section,))
    print(markdown(report))
    if args.json is not None:
        args.json.write_text(report.model_dump_json(indent=2), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
