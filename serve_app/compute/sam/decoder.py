"""SAM's prompt encoder and mask decoder as a `DecoderEngine`."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence

import torch
from segment_anything.modeling import Sam
from torch import Tensor

from serve_app.compute.devices import as_tensor, torch_dtype
from serve_app.compute.sam.finish import choose, finish_masks
from serve_app.compute.sam.frame import Frame
from serve_app.compute.sam.stages import MASKS, OpenVinoStages, Stages, TorchStages
from serve_app.compute.sam.tokens import pad_tokens, prompt_tokens
from serve_app.compute.sam.two_way import ImageSide
from serve_app.compute.traced import Graphs
from serve_app.domain.settings import Compute
from serve_app.domain.types import DecodeJob, Embedding, Mask

# The decoder's mask tokens: the first is for one unambiguous mask, three are for ambiguity.
_SINGLE, _MULTI = (0,), (1, 2, 3)

_SIDES = 4
"""Images whose first layer is kept, 10 MB each in single precision."""


class SamDecoder:
    """Decodes prompts of different images and users together."""

    def __init__(self, sam: Sam, compute: Compute, graphs: Graphs | None = None) -> None:
        """Put it on its device.

        Args:
            sam: with or without its encoder.
            compute: on what it runs.
            graphs: where traced graphs are kept; None: not at all.
        """
        self._device = torch.device(compute.device)
        self._dtype = torch_dtype(compute.dtype)
        # Prompts are encoded in single precision: coordinates do not fit into half of it.
        self._prompts = sam.prompt_encoder.to(self._device)
        pe = self._prompts.get_dense_pe().to(self._dtype)
        decoder = sam.mask_decoder.to(self._device, self._dtype)
        self._no_mask = self._prompts.no_mask_embed.weight[0][:, None, None].to(self._dtype)
        self._stages: Stages
        if self._device.type == "cpu" and self._dtype is torch.float32:
            graphs = graphs or Graphs(None, "")
            self._stages = OpenVinoStages(decoder, pe, compute.threads, graphs)
            # What is left to torch is small: threads that wait for more of it would take the
            # cores from OpenVINO's.
            self._torch_threads = 1
        else:
            self._stages = TorchStages(decoder, pe)
            self._torch_threads = compute.threads
        self._sides: dict[int, tuple[Embedding, ImageSide]] = {}  # by identity, last used last
        self._lock = threading.Lock()

    @torch.inference_mode()
    def decode_batch(self, jobs: Sequence[DecodeJob]) -> list[tuple[Mask, ...]]:
        """Masks for each job at its image's full size; each as if decoded alone."""
        torch.set_num_threads(self._torch_threads)
        answers: dict[int, tuple[Mask, ...]] = {}
        for indices, side in self._chunks(jobs):
            chunk = [jobs[i] for i in indices]
            answers.update(zip(indices, self._decode_chunk(chunk, side), strict=True))
        return [answers[i] for i in range(len(jobs))]

    def _chunks(self, jobs: Sequence[DecodeJob]) -> Iterator[tuple[list[int], ImageSide]]:
        """Jobs that are run together, and their images: of all of them, or one they share."""
        of_image: dict[int, list[int]] = {}
        for i, job in enumerate(jobs):
            # A mask is added to the image, so that such a prompt has an image of its own.
            alone = job.prompt.mask_input is not None
            of_image.setdefault(-1 - i if alone else id(job.embedding), []).append(i)
        groups = list(of_image.values())
        if self._stages.mixes_images and len(groups) > 1:
            groups = [[i for group in groups for i in group]]
        for group in groups:
            for start in range(0, len(group), self._stages.chunk):
                indices = group[start : start + self._stages.chunk]
                yield indices, self._side_of([jobs[i] for i in indices])

    def _side_of(self, jobs: Sequence[DecodeJob]) -> ImageSide:
        first = jobs[0]
        if all(j.embedding is first.embedding and j.prompt.mask_input is None for j in jobs[1:]):
            return self._image_side(first)
        sides = [self._image_side(job) for job in jobs]
        return ImageSide(*(torch.cat(parts) for parts in zip(*sides, strict=True)))

    def _image_side(self, job: DecodeJob) -> ImageSide:
        """The first layer's image side, kept for the images used last."""
        mask_input = job.prompt.mask_input
        if mask_input is not None:
            mask = as_tensor(mask_input)[None, None].to(self._device)
            return self._project(job, self._prompts.mask_downscaling(mask)[0].to(self._dtype))
        key = id(job.embedding)
        with self._lock:
            kept = self._sides.pop(key, None)
            if kept is not None:
                self._sides[key] = kept
                return kept[1]
        side = self._project(job, self._no_mask)
        with self._lock:
            # With the embedding itself: as long as it is kept, no other has its identity.
            self._sides[key] = job.embedding, side
            while len(self._sides) > _SIDES:
                del self._sides[next(iter(self._sides))]
        return side

    def _project(self, job: DecodeJob, dense: Tensor) -> ImageSide:
        embedding = as_tensor(job.embedding.tensors["image_embed"])
        embedding = embedding.to(self._device, self._dtype)
        return self._stages.project((embedding + dense)[None])

    def _decode_chunk(
        self, jobs: Sequence[DecodeJob], side: ImageSide
    ) -> Iterator[tuple[Mask, ...]]:
        frames = [Frame.padded(j.embedding.height, j.embedding.width) for j in jobs]
        tokens, padding = pad_tokens(prompt_tokens(self._prompts, [j.prompt for j in jobs], frames))
        iou, weights, keys = self._stages.attend(
            side, tokens.to(self._dtype), padding.to(self._dtype)
        )
        scores = iou.float().cpu()
        chosen = [
            choose(row, _SINGLE, _MULTI, job)
            for row, job in zip(scores.tolist(), jobs, strict=True)
        ]
        logits = self._upscale(keys, weights, chosen)
        for i, (job, frame) in enumerate(zip(jobs, frames, strict=True)):
            if not chosen[i]:
                yield ()
                continue
            yield finish_masks(logits[i], scores[i, chosen[i]], frame, job.options)

    def _upscale(
        self, keys: Tensor, weights: Tensor, chosen: Sequence[Sequence[int]]
    ) -> dict[int, Tensor]:
        """Low-resolution logits ``(M, 256, 256) float32`` of the prompts that keep a mask."""
        rows = [i for i, masks in enumerate(chosen) if masks]
        if not rows:
            return {}
        # Prompts that keep fewer masks repeat their last one.
        wanted = [[*chosen[i], *[chosen[i][-1]] * (MASKS - len(chosen[i]))] for i in rows]
        picked = torch.stack([weights[i, masks] for i, masks in zip(rows, wanted, strict=True)])
        seen = keys if len(rows) == len(keys) else keys[rows]
        logits = self._stages.upscale(seen, picked).float()
        return {i: logits[n, : len(chosen[i])] for n, i in enumerate(rows)}
