"""Stand-ins for models: a pass sleeps, and what it answers is drawn from its input.

So answers are a function of image and prompt alone, whoever gives them.  No torch, no weights.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections import Counter
from collections.abc import Iterable, Sequence
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
from serve_app.core.rle import encode_part
from serve_app.core.settings import Strict
from serve_app.core.types import Mask, Prompt, ProposalSource, RgbArray
from serve_app.engines.proposals.sources import grid_proposals


class StandIns(Strict):
    """Service times of the stand-ins, whatever is in a pass; and what the encoder leaks."""

    encode_ms: float = Field(40.0, ge=0)
    decode_ms: float = Field(10.0, ge=0)
    propose_ms: float = Field(10.0, ge=0)
    score_ms: float = Field(10.0, ge=0)
    embedding_bytes: int = Field(65_536, ge=0, description="of one image")
    leak_bytes_per_s: int = Field(0, ge=0, description="of an encoder that is asked")
    gate: str = Field("", description="folder of files that hold passes up; see `hold_up`")
    leak_files_per_min: float = Field(0.0, ge=0, description="likewise, descriptors")


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


class Worked:
    """How many items the stand-ins of this process have worked on.

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
        """Count items of a pass that begins."""
        cls.begun.update((width, height) for height, width in heights_and_widths)

    @classmethod
    def on(cls, heights_and_widths: Iterable[tuple[int, int]]) -> None:
        """Count items, one for each image."""
        for height, width in heights_and_widths:
            cls.items += 1
            cls.by_size[width, height] += 1


def hold_up(folder: str, role: str, heights_and_widths: Iterable[tuple[int, int]]) -> None:
    """Let a pass wait while there is a file for one of its images' sizes, such as "encode 72x54".

    So a test knows what has begun when it does something, however busy the machine is.  The file
    holds how many items of the size each process lets through before.
    """
    if not folder:
        return
    sizes = {(width, height) for height, width in heights_and_widths}
    while any(_shut(Path(folder) / f"{role} {w}x{h}", Worked.by_size[w, h]) for w, h in sizes):
        time.sleep(0.01)


def _shut(file: Path, done: int) -> bool:
    try:
        return done >= int(file.read_text() or 0)
    except FileNotFoundError:
        return False


class SleepingEncoder:
    """An embedding is the image's digest, features drawn from it, and ballast."""

    def __init__(self, times: StandIns) -> None:
        self._times = times
        self._began = time.monotonic()
        self._leaked: list[bytearray] = []
        self._files: list[int] = []

    def encode_batch(self, images: Sequence[RgbArray]) -> list[Embedding]:
        self._leak()
        sizes = [(image.shape[0], image.shape[1]) for image in images]
        Worked.begin(sizes)
        hold_up(self._times.gate, "encode", sizes)
        time.sleep(self._times.encode_ms / 1e3)
        Worked.on(sizes)
        return [self._embedding(image) for image in images]

    def _embedding(self, image: RgbArray) -> Embedding:
        height, width = image.shape[:2]
        tensors = {
            "image_embed": drawn(image).standard_normal((8, 16, 16)).astype(np.float32),
            "digest": np.frombuffer(digest(image), np.uint8).astype(np.float32),
            "ballast": np.zeros(self._times.embedding_bytes // 4, np.float32),
        }
        return Embedding(tensors, height=height, width=width)

    def _leak(self) -> None:
        passed_s = time.monotonic() - self._began
        owed = int(passed_s * self._times.leak_bytes_per_s) - sum(map(len, self._leaked))
        if owed > 0:
            self._leaked.append(bytearray(os.urandom(1) * owed))
        while len(self._files) < passed_s / 60 * self._times.leak_files_per_min:
            self._files.append(os.open(os.devnull, os.O_RDONLY))


class SleepingDecoder:
    """A mask is a rectangle, drawn from the image's digest and the prompt."""

    def __init__(self, times: StandIns) -> None:
        self._times = times

    def decode_batch(self, jobs: Sequence[DecodeJob]) -> list[tuple[Mask, ...]]:
        sizes = [(job.embedding.height, job.embedding.width) for job in jobs]
        Worked.begin(sizes)
        hold_up(self._times.gate, "decode", sizes)
        time.sleep(self._times.decode_ms / 1e3)
        Worked.on(sizes)
        return [self._masks(job) for job in jobs]

    def _masks(self, job: DecodeJob) -> tuple[Mask, ...]:
        prompt, size = job.prompt, (job.embedding.height, job.embedding.width)
        rng = drawn(
            job.embedding.tensors["digest"], prompt.point_coords, prompt.point_labels, prompt.box
        )
        masks = []
        for _ in range(3 if prompt.multimask_output else 1):
            (top, bottom), (left, right) = (np.sort(rng.integers(0, side, 2)) for side in size)
            part = np.ones((right - left + 1, bottom - top + 1), np.bool_)
            rle, bbox, area = encode_part(part, int(left), int(top), size)
            score, stability = rng.uniform(0.96, 0.99, 2).round(6).tolist()
            logits = np.zeros((256, 256), np.float16) if job.options.return_logits else None
            masks.append(
                Mask(
                    rle=rle,
                    score=score,
                    stability_score=stability,
                    bbox=bbox,
                    area=area,
                    low_res_logits=logits,
                )
            )
        return tuple(masks)


class SleepingProposals:
    """The real grid; elsewhere four boxes drawn from the image."""

    def __init__(self, times: StandIns) -> None:
        self._times = times

    def propose(
        self,
        pixels: RgbArray | None,
        size: tuple[int, int],
        source: ProposalSource,
        points_per_side: int,
    ) -> tuple[Proposal, ...]:
        time.sleep(self._times.propose_ms / 1e3)
        Worked.items += 1
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


class SleepingText:
    """Each text suits each candidate by a number drawn from both."""

    device = "cpu"

    def __init__(self, times: StandIns) -> None:
        self._times = times
        self.info = ScorerInfo(
            engine="labels",
            model="stand-in",
            needs_masks=False,
            proposals=ProposalSource.DETECTOR,
            threshold=0.5,
        )

    def score(
        self, pixels: RgbArray, candidates: Sequence[Candidate], texts: Sequence[str]
    ) -> TextScores:
        time.sleep(self._times.score_ms / 1e3)
        Worked.items += 1
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
