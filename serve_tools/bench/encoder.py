"""Section a: the encoder compared with other ways to run the same weights."""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from segment_anything import SamPredictor
from segment_anything.modeling import Sam
from segment_anything.utils.transforms import ResizeLongestSide
from torch import Tensor, nn

from serve_app.core.errors import SamServeError
from serve_app.core.ports import EncoderEngine
from serve_app.core.settings import Compute, GraphSettings
from serve_app.core.types import RgbArray
from serve_app.engines.sam.frame import IMAGE_SIZE
from serve_app.engines.sam.model import load_sam
from serve_app.models.factory import ModelSource
from serve_tools.bench.floor import busiest, encoder_flops, matrix_flops, matrix_product
from serve_tools.bench.rows import Row
from serve_tools.profiling.engines import unbounded
from serve_tools.profiling.timing import interleaved
from serve_tools.references.families import family_tools

EAGER = "segment_anything, eager, channels first"
COMPILED = "torch.compile, channels last"
ONNX = "onnxruntime, exported"
_PEAK = "fp32 matrix product"

Pass = Callable[[], object]


def run(
    ours: Mapping[str, EncoderEngine],
    peers: Mapping[str, Pass],
    pixels: RgbArray,
    *,
    threads: int,
    flops: Mapping[str, float],
    rounds: int,
    profile: bool = True,
    budget_s: float = 60.0,
) -> list[Row]:
    """Milliseconds per image, all systems interleaved, and the distance of each from the floor.

    Args:
        ours: engines by the name of their variant; others are compared with the first.
        peers: passes over the same image by name.
        pixels: ``(H, W, 3) uint8`` RGB, the image; ours include its resizing.
        threads: of each system.
        flops: operations an image by name, for those of which they are known.
        profile: report what each spends its time on, at the cost of one more pass.
    """
    passes: dict[str, Pass] = {name: _engine_pass(engine, pixels) for name, engine in ours.items()}
    passes |= peers
    busy = {name: busiest(one) if profile else "" for name, one in passes.items()}
    times = interleaved(
        {_PEAK: matrix_product(threads), **{n: _on(threads, one) for n, one in passes.items()}},
        repeats=rounds, budget_s=budget_s, seed=0,
    )  # fmt: skip
    peak = matrix_flops() / min(times[_PEAK])  # operations a millisecond
    return [
        Row(
            case="one image",
            system=name,
            ours=name in ours,
            unit="ms an image",
            rounds=tuple(times[name]),
            floor=flops[name] / peak if name in flops else None,
            dominates=busy[name],
        )
        for name in passes
    ] + [
        Row(
            case="matrix peak",
            system=_PEAK,
            unit="GFLOP/s",
            higher_is_better=True,
            rounds=tuple(matrix_flops() / ms / 1e6 for ms in times[_PEAK]),
        )
    ]


def _engine_pass(engine: EncoderEngine, pixels: RgbArray) -> Pass:
    return lambda: engine.encode_batch([pixels])


def _on(threads: int, one: Pass) -> Pass:
    """The pass with this number of torch threads: loading an engine changes that number."""

    def run_one() -> object:
        torch.set_num_threads(threads)
        return one()

    return run_one


def cpu_variants(settings: GraphSettings) -> dict[str, Compute]:
    """Compute settings of the variants with an encoder on the CPU, the default variant first."""
    found = {
        name: unbounded(variant.encoder_compute)
        for name, variant in settings.variants.items()
        if variant.encoder_compute.device == "cpu"
    }
    first = settings.router.default
    return dict(sorted(found.items(), key=lambda item: item[0] != first))


def load_ours(
    settings: GraphSettings,
) -> tuple[dict[str, EncoderEngine], dict[str, float], list[str]]:
    """This project's encoders on the CPU by their names in the report.

    Each variant with its configured engine, and the default variant with its other engines.  One
    that cannot be loaded (weights missing or unavailable) is skipped.

    Returns:
        Engines, the operations of those that run SAM's own encoders, and notes on the others.
    """
    source = ModelSource.of(settings)
    engines: dict[str, EncoderEngine] = {}
    flops: dict[str, float] = {}
    notes: list[str] = []
    for name, compute in _chosen(settings, source):
        model = settings.variants[name].model
        spec = source.spec(model)
        label = f"ours: {name} ({model}, {spec.engine(compute)})"
        try:
            engines[label] = source.load_encoder(model, compute)
        except (SamServeError, ValueError, OSError) as exc:
            if not engines:
                raise
            notes.append(f"{label} could not be loaded ({type(exc).__name__}).")
            continue
        if spec.architecture is not None and family_tools(spec.family).load_original is not None:
            flops[label] = encoder_flops(spec.architecture)
        else:
            notes.append(f"{label} is another model: its ratio compares response times only.")
    return engines, flops, notes


def _chosen(settings: GraphSettings, source: ModelSource) -> list[tuple[str, Compute]]:
    variants = cpu_variants(settings)
    found = list(variants.items())
    default = settings.router.default
    if default in variants:
        spec, compute = source.spec(settings.variants[default].model), variants[default]
        # Compiling takes minutes, and is among the peers.
        others = [e for e in spec.engines if e not in (spec.engine(compute), "compiled")]
        found[1:1] = [(default, compute.model_copy(update={"engine": e})) for e in others]
    return found


def load_peers(
    architecture: str, checkpoint: Path, pixels: RgbArray, threads: int, names: Sequence[str]
) -> dict[str, Pass]:
    """Passes of other ways to run a checkpoint.

    The eager one resizes the image as ours do; to the others it comes resized.
    """
    torch.set_num_threads(threads)
    image = _input(architecture, checkpoint, pixels)
    make: dict[str, Callable[[Sam], Pass]] = {
        EAGER: lambda sam: partial(SamPredictor(sam).set_image, pixels),
        COMPILED: lambda sam: _compiled_pass(sam.image_encoder, image),
        ONNX: lambda sam: _onnx_pass(sam.image_encoder, image, threads),
    }
    return {name: make[name](load_sam(architecture, checkpoint)) for name in names}


def _input(architecture: str, checkpoint: Path, pixels: RgbArray) -> Tensor:
    sam = load_sam(architecture, checkpoint)
    resized = ResizeLongestSide(IMAGE_SIZE).apply_image(pixels)
    tensor = torch.from_numpy(np.asarray(resized)).permute(2, 0, 1)[None].float()
    return sam.preprocess(tensor).contiguous()  # type: ignore[no-any-return]


def _compiled_pass(encoder: nn.Module, image: Tensor) -> Pass:
    compiled = torch.compile(encoder.to(memory_format=torch.channels_last))
    image = image.to(memory_format=torch.channels_last)

    @torch.inference_mode()
    def one() -> object:
        return compiled(image)

    one()  # compiles, for a minute or so
    return one


def _onnx_pass(encoder: nn.Module, image: Tensor, threads: int) -> Pass:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "encoder.onnx"
        export_onnx(encoder, (torch.zeros(1, 3, IMAGE_SIZE, IMAGE_SIZE),), path, ["image"])
        session = onnxruntime.InferenceSession(path, options, ["CPUExecutionProvider"])
    array = image.numpy()
    return lambda: session.run(None, {"image": array})


def export_onnx(
    module: nn.Module,
    example: tuple[Tensor, ...],
    path: Path,
    inputs: list[str],
    dynamic_axes: Mapping[str, Mapping[int, str]] | None = None,
) -> None:
    """Write a module as ONNX by tracing; needs the package ``onnx``."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of tracing Python values, which are constants here
        torch.onnx.export(
            module, example, path, input_names=inputs, dynamic_axes=dynamic_axes, dynamo=False
        )
