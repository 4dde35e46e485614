"""Fake models of fixed service time, and the source that loads them into replicas.

A pass sleeps, and its results are drawn from its input: they are a function of image and prompt
alone, whichever replica runs it.  No torch, no weights.
"""

from __future__ import annotations

import hashlib
import os
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from serve_app.core.inference import (
    Candidate,
    DecodeJob,
    Embedding,
    Proposal,
    ScorerInfo,
    TextScores,
)
from serve_app.core.ports import DecoderEngine, EncoderEngine, ProposalsEngine, TextScoringEngine
from serve_app.core.settings import Compute, ProposalsSettings, Strict, TextSettings
from serve_app.core.types import Mask, Prompt, ProposalSource, RgbArray, UnknownText
from serve_app.engines.proposals import grid_proposals
from serve_app.models.factory import ModelSource

from .masks import rectangle_mask


class ServiceTimes(Strict):
    """Of one pass, whatever its size; and what the encoder leaks."""

    encode_ms: float = Field(40.0, ge=0)
    decode_ms: float = Field(10.0, ge=0)
    propose_ms: float = Field(10.0, ge=0)
    score_ms: float = Field(10.0, ge=0)
    embedding_bytes: int = Field(65_536, ge=0, description="of one image")
    leak_bytes_per_s: int = Field(0, ge=0, description="of an encoder with requests")
    gate: str = Field("", description="folder of files that hold passes; see `hold`")
    leak_files_per_min: float = Field(0.0, ge=0, description="likewise, descriptors")


INSTANT = ServiceTimes(encode_ms=0, decode_ms=0, propose_ms=0, score_ms=0, embedding_bytes=0)


Part = bytes | str | NDArray[Any] | None


def digest(*parts: Part) -> bytes:
    """32 bytes that depend on every part, and on an array's shape."""
    found = hashlib.sha256()
    for part in parts:
        raw = _raw(part)
        found.update(len(raw).to_bytes(8, "big") + raw)
    return found.digest()


def _raw(part: Part) -> bytes:
    if isinstance(part, np.ndarray):
        return str(part.shape).encode() + part.tobytes()
    if isinstance(part, str):
        return part.encode()
    return b"nothing" if part is None else part


def drawn(*parts: Part) -> np.random.Generator:
    """Random numbers that are the same for the same parts."""
    return np.random.default_rng(np.frombuffer(digest(*parts), np.uint64))


class PassCounts:
    """Items that the fakes of this process have processed.

    Attributes:
        by_size: of encoder and decoder, by the image's width and height: a caller whose images
            have a size of their own can be told from others.
        begun: the same, counted when their passes begin.
    """

    items = 0
    by_size: ClassVar[Counter[tuple[int, int]]] = Counter()
    begun: ClassVar[Counter[tuple[int, int]]] = Counter()

    @classmethod
    def begin(cls, heights_and_widths: Iterable[tuple[int, int]]) -> None:
        """Count the items of a pass that begins."""
        cls.begun.update((width, height) for height, width in heights_and_widths)

    @classmethod
    def done(cls, heights_and_widths: Iterable[tuple[int, int]]) -> None:
        """Count items, one for each image."""
        for height, width in heights_and_widths:
            cls.items += 1
            cls.by_size[width, height] += 1


def hold(folder: str, role: str, heights_and_widths: Iterable[tuple[int, int]]) -> None:
    """Hold a pass while there is a file for one of its images' sizes, such as "encode 72x54".

    So a test knows what has begun when it does something, however busy the machine is.  The file
    contains how many items of the size each process lets through before.
    """
    if not folder:
        return
    sizes = {(width, height) for height, width in heights_and_widths}
    while any(_shut(Path(folder) / f"{role} {w}x{h}", PassCounts.by_size[w, h]) for w, h in sizes):
        time.sleep(0.01)


def _shut(file: Path, done: int) -> bool:
    try:
        return done >= int(file.read_text() or 0)
    except FileNotFoundError:
        return False


def drawn_tensors(image: RgbArray) -> dict[str, NDArray[Any]]:
    """The image's digest, and features drawn from it."""
    return {
        "image_embed": drawn(image).standard_normal((8, 16, 16)).astype(np.float32),
        "digest": np.frombuffer(digest(image), np.uint8).astype(np.float32),
    }


class FakeEncoder:
    """Embeds by rule, and adds ballast.

    Attributes:
        batches: sizes of the latest passes.
    """

    def __init__(
        self,
        times: ServiceTimes = INSTANT,
        tensors_of: Callable[[RgbArray], Mapping[str, NDArray[Any]]] = drawn_tensors,
    ) -> None:
        self.batches: deque[int] = deque(maxlen=1000)
        self._times, self._tensors_of = times, tensors_of
        self._began = time.monotonic()
        self._leaked: list[bytearray] = []
        self._files: list[int] = []

    def encode_batch(self, images: Sequence[RgbArray]) -> list[Embedding]:
        self._leak()
        self.batches.append(len(images))
        sizes = [(image.shape[0], image.shape[1]) for image in images]
        PassCounts.begin(sizes)
        hold(self._times.gate, "encode", sizes)
        time.sleep(self._times.encode_ms / 1e3)
        PassCounts.done(sizes)
        return [self._embedding(image) for image in images]

    def _embedding(self, image: RgbArray) -> Embedding:
        tensors = dict(self._tensors_of(image))
        if self._times.embedding_bytes:
            tensors["ballast"] = np.zeros(self._times.embedding_bytes // 4, np.float32)
        return Embedding(tensors, *image.shape[:2])

    def _leak(self) -> None:
        passed_s = time.monotonic() - self._began
        owed = int(passed_s * self._times.leak_bytes_per_s) - sum(map(len, self._leaked))
        if owed > 0:
            self._leaked.append(bytearray(os.urandom(1) * owed))
        while len(self._files) < passed_s / 60 * self._times.leak_files_per_min:
            self._files.append(os.open(os.devnull, os.O_RDONLY))


def drawn_masks(job: DecodeJob) -> tuple[Mask, ...]:
    """Rectangles, drawn from the image's digest and the prompt."""
    prompt, size = job.prompt, (job.embedding.height, job.embedding.width)
    rng = drawn(
        job.embedding.tensors["digest"], prompt.point_coords, prompt.point_labels, prompt.box
    )
    logits = np.zeros((256, 256), np.float16) if job.options.return_logits else None
    masks = []
    for _ in range(3 if prompt.multimask_output else 1):
        (top, bottom), (left, right) = (np.sort(rng.integers(0, side, 2)) for side in size)
        score, stability = rng.uniform(0.96, 0.99, 2).round(6).tolist()
        box = int(left), int(top), int(right - left + 1), int(bottom - top + 1)
        masks.append(rectangle_mask(box, score, stability, size, low_res_logits=logits))
    return tuple(masks)


def no_masks(job: DecodeJob) -> tuple[Mask, ...]:
    return ()


class FakeDecoder:
    """Masks by rule.

    Attributes:
        batches: sizes of the latest passes.
        jobs: the latest that were decoded.
        free: passes wait until it is set.
    """

    def __init__(
        self,
        times: ServiceTimes = INSTANT,
        masks_of: Callable[[DecodeJob], tuple[Mask, ...]] = drawn_masks,
    ) -> None:
        self.batches: deque[int] = deque(maxlen=1000)
        self.jobs: deque[DecodeJob] = deque(maxlen=16)
        self.free = threading.Event()
        self.free.set()
        self._times, self._masks_of = times, masks_of

    def decode_batch(self, jobs: Sequence[DecodeJob]) -> list[tuple[Mask, ...]]:
        self.batches.append(len(jobs))
        sizes = [(job.embedding.height, job.embedding.width) for job in jobs]
        PassCounts.begin(sizes)
        hold(self._times.gate, "decode", sizes)
        assert self.free.wait(60)
        time.sleep(self._times.decode_ms / 1e3)
        PassCounts.done(sizes)
        self.jobs += jobs
        return [self._masks_of(job) for job in jobs]


class FakeProposals:
    """The real grid; of other sources four boxes drawn from the image."""

    def __init__(self, times: ServiceTimes = INSTANT) -> None:
        self._times = times

    def propose(
        self,
        pixels: RgbArray | None,
        size: tuple[int, int],
        source: ProposalSource,
        points_per_side: int,
    ) -> tuple[Proposal, ...]:
        time.sleep(self._times.propose_ms / 1e3)
        PassCounts.items += 1
        if source is ProposalSource.GRID:
            return grid_proposals(size, points_per_side)
        corner = drawn(pixels).uniform(0, 0.5, (4, 2)) * size
        boxes = np.concatenate([corner, corner + np.array(size) / 2], axis=1)
        return tuple(
            Proposal(
                prompt=Prompt(box=box, multimask_output=False),
                source=source,
                objectness=0.9,
                label="thing",
            )
            for box in boxes
        )


class FakeText:
    """Scores drawn from image, text and candidate."""

    device = "cpu"

    def __init__(self, times: ServiceTimes = INSTANT) -> None:
        self._times = times
        self.info = ScorerInfo(
            engine="labels",
            model="fake",
            needs_masks=False,
            proposals=ProposalSource.DETECTOR,
            threshold=0.5,
        )

    def unknown(self, texts: Sequence[str]) -> tuple[UnknownText | None, ...]:
        return (None,) * len(texts)

    def score(
        self, pixels: RgbArray, candidates: Sequence[Candidate], texts: Sequence[str]
    ) -> TextScores:
        time.sleep(self._times.score_ms / 1e3)
        PassCounts.items += 1
        image = digest(pixels)
        scores = [
            [drawn(image, text, np.array(c.bbox)).uniform(0.4, 1) for c in candidates]
            for text in texts
        ]
        return TextScores(
            scores=np.array(scores, np.float32).reshape(len(texts), len(candidates)),
            engine=self.info.engine,
            threshold=self.info.threshold,
        )


@dataclass(frozen=True)
class FakeSource(ModelSource):
    """Loads fakes, in the process of the replica that it is sent to.

    Attributes:
        encoder, decoder, text: engines of this process to be used; None loads fakes.
    """

    times: ServiceTimes = field(default_factory=lambda: INSTANT)
    encoder: EncoderEngine | None = None
    decoder: DecoderEngine | None = None
    text: TextScoringEngine | None = None

    def load_encoder(self, model: str, compute: Compute) -> EncoderEngine:
        return self.encoder or FakeEncoder(self.times)

    def load_decoder(self, model: str, compute: Compute) -> DecoderEngine:
        return self.decoder or FakeDecoder(self.times)

    def load_proposals(self, settings: ProposalsSettings) -> ProposalsEngine:
        return FakeProposals(self.times)

    def load_text(self, settings: TextSettings) -> TextScoringEngine:
        return self.text or FakeText(self.times)
