"""One variant measured in a process of its own: ``python -m serve_tools.profiling.probe``.

Reads a `ProbeRequest` from stdin, writes `ProbeEvent` lines to stdout.  Before the first masks it
imports only what a replica imports too, so that the cold start is that of a replica.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np

from serve_app.core.errors import SamServeError
from serve_app.core.inference import DecodeJob, DecodeOptions, Embedding
from serve_app.core.measurements import Data
from serve_app.core.ports import DecoderEngine, EncoderEngine
from serve_app.core.settings import GraphSettings
from serve_app.core.types import Prompt, RgbArray
from serve_app.models.factory import ModelSource
from serve_tools.profiling.engines import import_libraries, load_variant
from serve_tools.profiling.memory import held_bytes, peak_bytes
from serve_tools.profiling.protocol import Effort, ProbeEvent, ProbeRequest, ProbeResult
from serve_tools.profiling.quality import Prediction, QualityRecord, predict_sample, records_of
from serve_tools.profiling.timing import interleaved

PHOTO = (960, 1280)
"""Height and width of the images that passes are timed on."""

Emit = Callable[[ProbeEvent], None]


def main() -> int:
    """Run the request on stdin."""
    # Output of libraries must not mix with the events.
    out = os.fdopen(os.dup(1), "w", encoding="utf-8", buffering=1)
    os.dup2(2, 1)

    def emit(event: ProbeEvent) -> None:
        print(event.model_dump_json(), file=out)

    try:
        probe(ProbeRequest.model_validate_json(sys.stdin.buffer.read()), emit)
    except (SamServeError, MeasureError) as exc:
        emit(ProbeEvent(kind="failed", text=str(exc)))
        return 1
    return 0


class MeasureError(Exception):
    """A variant cannot be measured; the text is the reason."""


def probe(request: ProbeRequest, emit: Emit, source: ModelSource | None = None) -> None:
    """Measure a variant: the first masks, then memory, times, quality and agreement.

    Args:
        request: the variant, and what to measure.
        emit: called with each event.
        source: makes the engines; None: the one that the settings configure.
    """
    source = source or ModelSource.of(request.settings)
    import_libraries(request.settings, request.variant, source)
    start = time.perf_counter()
    encoder, decoder = load_variant(request.settings, request.variant, source)
    load_s = time.perf_counter() - start
    decoder.decode_batch(_jobs(encoder.encode_batch([_photo(0)])[0], 1))
    emit(ProbeEvent(kind="first", load_s=load_s))
    if request.effort is not None:
        bench = _Bench(request.settings, request.variant, request.effort, source, encoder, decoder)
        emit(ProbeEvent(kind="result", result=bench.measure(emit)))


def _photo(seed: int) -> RgbArray:
    """Noise of a photo's size: the content does not change a pass's time."""
    return np.random.default_rng(seed).integers(0, 256, (*PHOTO, 3), np.uint8)


def _jobs(embedding: Embedding, count: int) -> list[DecodeJob]:
    """Clicks spread over the image, each for three masks, which is the default of a request."""
    shares = np.random.default_rng(count).uniform(0.05, 0.95, (count, 1, 2))
    prompts = [
        Prompt(point_coords=xy * PHOTO[::-1], point_labels=np.ones(1, np.int32)) for xy in shares
    ]
    return [DecodeJob(embedding, prompt, DecodeOptions()) for prompt in prompts]


@dataclass(frozen=True, slots=True)
class _Bench:
    """The engines of one variant, loaded and warm."""

    settings: GraphSettings
    variant: str
    effort: Effort
    source: ModelSource
    encoder: EncoderEngine
    decoder: DecoderEngine

    def measure(self, emit: Emit) -> ProbeResult:
        # Before anything else is loaded.
        memory = (held_bytes(), peak_bytes(), self._gpu_bytes())
        emit(ProbeEvent(kind="progress", text="timing passes"))
        encode_ms, decode_ms, embedding_bytes = self._times()
        emit(ProbeEvent(kind="progress", text="quality"))
        data, records, predictions = self._quality()
        emit(ProbeEvent(kind="progress", text="parity with the reference"))
        from serve_tools.profiling.parity import parity
        from serve_tools.profiling.reference_models import load_reference

        reference = load_reference(self.settings, self.variant, self.source)
        return ProbeResult(
            memory_bytes=memory[0],
            peak_memory_bytes=max(memory[:2]),
            gpu_memory_bytes=memory[2],
            embedding_bytes=embedding_bytes,
            encode_ms=encode_ms,
            decode_ms=decode_ms,
            data=data,
            records=records,
            agreement=parity(predictions, reference, self.effort.seed),
        )

    def _gpu_bytes(self) -> int | None:
        import torch

        if self.settings.variants[self.variant].encoder_compute.device == "cpu":
            return None
        return torch.cuda.max_memory_reserved() or None  # 0: onnxruntime's are not torch's

    def _times(self) -> tuple[dict[int, list[float]], dict[int, list[float]], int]:
        import torch

        from serve_app.engines.devices import use_threads

        photos = [_photo(seed) for seed in range(max(self.effort.encode_sizes))]
        embedding = self.encoder.encode_batch(photos[:1])[0]
        chosen = self.settings.variants[self.variant]
        half = {"encode": chosen.encoder_compute, "decode": chosen.decoder.compute}

        def one_pass(what: str, size: int) -> None:
            # The halves may have different threads in processes of their own.
            use_threads(half[what].threads)
            if what == "encode":
                self.encoder.encode_batch(photos[:size])
            else:
                self.decoder.decode_batch(jobs[size])

        jobs = {size: _jobs(embedding, size) for size in self.effort.decode_sizes}
        sizes = {"encode": self.effort.encode_sizes, "decode": self.effort.decode_sizes}
        times = interleaved(
            {(what, n): partial(one_pass, what, n) for what in sizes for n in sizes[what]},
            repeats=self.effort.repeats,
            budget_s=self.effort.budget_s,
            seed=self.effort.seed,
            too_large=(torch.OutOfMemoryError, MemoryError),
        )
        encode, decode = (
            {n: taken for (what, n), taken in times.items() if what == wanted} for wanted in sizes
        )
        if not encode or not decode:
            raise MeasureError("there is too little memory for a single pass")
        return encode, decode, embedding.nbytes

    def _quality(self) -> tuple[Data, tuple[QualityRecord, ...], list[Prediction]]:
        from serve_tools.profiling.samples import load_samples

        samples = load_samples(self.effort, self.settings.limits)
        records: list[QualityRecord] = []
        kept: list[Prediction] = []
        for sample in samples:
            predicted = predict_sample(self.encoder, self.decoder, sample, self.effort.forms)
            records += records_of(self.variant, predicted)
            if len(kept) < self.effort.parity_images:
                kept.append(predicted)
        if not records:
            raise MeasureError("none of the annotated images can be used")
        data = Data(
            name=samples.name,
            images=len({r.image for r in records}),
            objects=len({(r.image, r.object) for r in records}),
            sha256=samples.sha256,
        )
        return data, tuple(records), kept


if __name__ == "__main__":
    sys.exit(main())
