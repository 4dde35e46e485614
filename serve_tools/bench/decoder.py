"""Section b: the mask decoder in batches against `segment_anything` in the same batches."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from segment_anything import SamPredictor
from segment_anything.utils.transforms import ResizeLongestSide

from serve_app.core.inference import DecodeJob, DecodeOptions, Embedding
from serve_app.core.ports import DecoderEngine
from serve_app.core.types import LOW_RES, Prompt
from serve_app.engines.devices import as_tensor
from serve_app.engines.sam.frame import IMAGE_SIZE
from serve_app.engines.sam.model import load_sam
from serve_tools.bench.encoder import export_onnx
from serve_tools.bench.floor import (
    DECODER_AS_WRITTEN,
    DECODER_REWRITTEN,
    busiest,
    matrix_flops,
    matrix_product,
)
from serve_tools.bench.rows import Row
from serve_tools.profiling.timing import interleaved

SIZES = (1, 8, 32, 128)
OURS = "ours"
EAGER = "segment_anything, eager"
ONNX = "onnxruntime, exported, one by one"
_PEAK = "peak"

Clicks = NDArray[np.float64]
"""``(N, 2)``, ``(x, y)`` in pixels of the image: one click for each prompt."""


@dataclass(frozen=True, slots=True)
class Contender:
    """One way to decode: masks of full size, three for each click.

    Attributes:
        decode: does so for all clicks in one call.
        flops: operations of one prompt, as this way computes it.
    """

    decode: Callable[[Clicks], object]
    flops: float
    ours: bool = False


def run(
    contenders: Mapping[str, Contender],
    embedding: Embedding,
    *,
    threads: int,
    sizes: Sequence[int] = SIZES,
    rounds: int,
    profile: bool = True,
    budget_s: float = 60.0,
) -> list[Row]:
    """Milliseconds per prompt by batch size, all systems interleaved.

    Args:
        budget_s: no further pass is begun once a system has taken this long at one size.
    """
    clicks = {n: clicks_on(embedding, n) for n in sizes}
    kinds = [(name, n) for n in sizes for name in contenders]

    def decode(name: str, count: int) -> object:
        torch.set_num_threads(threads)
        return contenders[name].decode(clicks[count])

    times = interleaved(
        {(_PEAK, 0): matrix_product(threads), **{kind: partial(decode, *kind) for kind in kinds}},
        repeats=rounds, budget_s=budget_s, seed=0,
    )  # fmt: skip
    peak = matrix_flops() / min(times[_PEAK, 0])  # operations a millisecond
    profiled_at = min(sizes, key=lambda n: abs(n - 32))
    busy = {
        name: busiest(partial(decode, name, profiled_at)) if profile else "" for name in contenders
    }
    return [
        Row(
            case=f"{n} prompt{'s' if n > 1 else ''}",
            system=name,
            ours=contenders[name].ours,
            unit="ms a prompt",
            rounds=tuple(ms / n for ms in times[name, n]),
            floor=contenders[name].flops / peak,
            dominates=busy[name] if n == profiled_at else "",
        )
        for name, n in kinds
    ]


def clicks_on(embedding: Embedding, count: int) -> Clicks:
    """Clicks all over an image."""
    shares = np.random.default_rng(count).uniform(0.05, 0.95, (count, 2))
    return np.asarray(shares * (embedding.width, embedding.height), np.float64)


def jobs_at(embedding: Embedding, clicks: Clicks) -> list[DecodeJob]:
    """A job for each click, as the service would make it."""
    one = np.ones(1, np.int32)
    return [
        DecodeJob(embedding, Prompt(point_coords=xy[None], point_labels=one), DecodeOptions())
        for xy in clicks
    ]


def ours(engine: DecoderEngine, embedding: Embedding) -> Contender:
    """The product's decoder; masks come with stability, box, area and as RLE."""
    return Contender(
        lambda clicks: engine.decode_batch(jobs_at(embedding, clicks)), DECODER_REWRITTEN, ours=True
    )


def eager(architecture: str, checkpoint: Path, embedding: Embedding) -> Contender:
    """`SamPredictor.predict_torch` with all clicks as one batch; masks stay boolean tensors."""
    predictor = SamPredictor(load_sam(architecture, checkpoint))
    size = (embedding.height, embedding.width)
    predictor.features = as_tensor(embedding.tensors["image_embed"])[None].float()
    predictor.original_size = size
    predictor.input_size = predictor.transform.get_preprocess_shape(
        *size, predictor.transform.target_length
    )
    predictor.is_image_set = True

    def decode(clicks: Clicks) -> object:
        points = torch.from_numpy(predictor.transform.apply_coords(clicks, size))[:, None].float()
        return predictor.predict_torch(points, torch.ones(len(points), 1), multimask_output=True)

    return Contender(decode, DECODER_AS_WRITTEN)


def exported(architecture: str, checkpoint: Path, embedding: Embedding, threads: int) -> Contender:
    """`segment_anything`'s ONNX export, which takes the prompts of one mask at a time."""
    import onnxruntime
    from segment_anything.utils.onnx import SamOnnxModel

    transform, size = ResizeLongestSide(IMAGE_SIZE), (embedding.height, embedding.width)
    inputs: dict[str, Any] = {
        "image_embeddings": embedding.tensors["image_embed"][None].astype(np.float32),
        # The second is the export's own padding, where there is no box.
        "point_coords": np.zeros((1, 2, 2), np.float32),
        "point_labels": np.array([[1, -1]], np.float32),
        "mask_input": np.zeros((1, 1, LOW_RES, LOW_RES), np.float32),
        "has_mask_input": np.zeros(1, np.float32),
        "orig_im_size": np.array(size, np.float32),
    }
    model = SamOnnxModel(load_sam(architecture, checkpoint), return_single_mask=False)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "decoder.onnx"
        example = tuple(torch.from_numpy(a) for a in inputs.values())
        axes = {name: {1: "points"} for name in ("point_coords", "point_labels")}
        export_onnx(model, example, path, list(inputs), axes)
        session = onnxruntime.InferenceSession(path, options, ["CPUExecutionProvider"])

    def decode(clicks: Clicks) -> object:
        results = []
        for xy in clicks:
            inputs["point_coords"][0, 0] = transform.apply_coords(xy, size)
            results.append(session.run(None, inputs))
        return results

    return Contender(decode, DECODER_AS_WRITTEN)
