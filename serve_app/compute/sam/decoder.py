"""SAM's prompt encoder and mask decoder as a `DecoderEngine`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from segment_anything.modeling import Sam
from torch import Tensor

from serve_app.compute.devices import as_tensor, torch_dtype
from serve_app.compute.sam.finish import choose, finish_masks
from serve_app.compute.sam.frame import Frame
from serve_app.compute.sam.tokens import pad_tokens, prompt_tokens
from serve_app.compute.sam.two_way import ImageSide, RaggedMaskDecoder
from serve_app.domain.settings import Compute
from serve_app.domain.types import DecodeJob, Embedding, Mask

_CPU_CHUNK = 4
_GPU_CHUNK = 64

# The decoder's mask tokens: the first is for one unambiguous mask, three are for ambiguity.
_SINGLE, _MULTI = (0,), (1, 2, 3)


@dataclass(slots=True)
class _LastImage:
    """The image side computed last; prompts come sorted by image."""

    embedding: Embedding | None = None
    side: ImageSide | None = None


class SamDecoder:
    """Decodes prompts of different images and users together.

    On a CPU prompts go through in chunks whose activations (4 MiB a prompt) stay in the cache.
    """

    def __init__(self, sam: Sam, compute: Compute) -> None:
        self._device = torch.device(compute.device)
        self._dtype = torch_dtype(compute.dtype)
        # Prompts are encoded in single precision: coordinates do not fit into half of it.
        self._prompts = sam.prompt_encoder.to(self._device)
        pe = self._prompts.get_dense_pe().to(self._dtype)
        self._decoder = RaggedMaskDecoder(sam.mask_decoder.to(self._device, self._dtype), pe)
        self._no_mask = self._prompts.no_mask_embed.weight[0][:, None, None].to(self._dtype)
        self._chunk = _GPU_CHUNK if self._device.type == "cuda" else _CPU_CHUNK

    @torch.inference_mode()
    def decode_batch(self, jobs: Sequence[DecodeJob]) -> list[tuple[Mask, ...]]:
        """Masks for each job at its image's full size; each as if decoded alone."""
        # Jobs of one image side by side, so that they share its first layer.
        order = sorted(range(len(jobs)), key=lambda i: id(jobs[i].embedding))
        answers: dict[int, tuple[Mask, ...]] = {}
        shared = _LastImage()
        for start in range(0, len(order), self._chunk):
            indices = order[start : start + self._chunk]
            chunk = [jobs[i] for i in indices]
            sides: list[ImageSide] = []
            counts: list[int] = []
            for job in chunk:
                side = self._image_side(job, shared)
                if sides and sides[-1] is side:
                    counts[-1] += 1
                else:
                    sides.append(side)
                    counts.append(1)
            answers.update(zip(indices, self._decode_chunk(chunk, sides, counts), strict=True))
        return [answers[i] for i in range(len(jobs))]

    def _image_side(self, job: DecodeJob, shared: _LastImage) -> ImageSide:
        """The first layer's image side: shared by all prompts of an image without a mask."""
        mask_input = job.prompt.mask_input
        if mask_input is None and shared.embedding is job.embedding and shared.side is not None:
            return shared.side
        embedding = as_tensor(job.embedding.tensors["image_embed"])
        embedding = embedding.to(self._device, self._dtype)
        if mask_input is not None:
            mask = as_tensor(mask_input)[None, None].to(self._device)
            dense = self._prompts.mask_downscaling(mask)[0].to(self._dtype)
            return self._decoder.image_side(embedding, dense)
        shared.embedding = job.embedding
        shared.side = self._decoder.image_side(embedding, self._no_mask)
        return shared.side

    def _decode_chunk(
        self, jobs: Sequence[DecodeJob], sides: Sequence[ImageSide], counts: Sequence[int]
    ) -> Iterator[tuple[Mask, ...]]:
        frames = [Frame.padded(j.embedding.height, j.embedding.width) for j in jobs]
        tokens, real = pad_tokens(prompt_tokens(self._prompts, [j.prompt for j in jobs], frames))
        iou, weights, keys = self._decoder.attend(sides, counts, tokens.to(self._dtype), real)
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
        """Low-resolution logits ``(M, 256, 256) float32`` of the prompts that keep a mask.

        Prompts that keep equally many masks are upscaled together.
        """
        logits: dict[int, Tensor] = {}
        for wanted in sorted({len(c) for c in chosen} - {0}):
            rows = [i for i, c in enumerate(chosen) if len(c) == wanted]
            picked = torch.stack([weights[i, list(chosen[i])] for i in rows])
            seen = keys if len(rows) == len(keys) else keys[rows]
            for i, masks in zip(rows, self._decoder.masks(seen, picked), strict=True):
                logits[i] = masks.float()
        return logits
