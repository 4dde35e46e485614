"""SAM's prompt encoder and mask decoder as a `DecoderEngine`."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from cachetools import LRUCache
from segment_anything.modeling import PromptEncoder, Sam
from torch import Tensor

from serve_app.core.inference import DecodeJob, Embedding
from serve_app.core.settings import Compute
from serve_app.core.types import Mask, Prompt
from serve_app.engines.devices import as_tensor, torch_dtype, use_threads
from serve_app.engines.sam import cut
from serve_app.engines.sam.frame import Frame
from serve_app.engines.sam.postprocess import choose, postprocess_masks
from serve_app.engines.sam.two_way import MASKS, ImageSide, TorchStages

if TYPE_CHECKING:
    from serve_app.engines.sam.stages_openvino import OpenVinoStages

# The decoder's mask tokens: the first is for one unambiguous mask, three are for ambiguity.
_SINGLE, _MULTI = (0,), (1, 2, 3)

_MAX_PENDING = 32
"""Maximum prompts of a batch with logits queued for postprocessing, 0.75 MB each."""

_SIDES = 4
"""Images with a cached first layer, 10 MB each in single precision."""


class SamDecoder:
    """Decodes prompts of different images and users together."""

    def __init__(
        self, sam: Sam, compute: Compute, graphs: Path | None = None, weights: str = ""
    ) -> None:
        """Move it to its device.

        Args:
            sam: with or without its encoder.
            compute: device, dtype and threads.
            graphs: the folder where traced graphs are saved; None: not saved.
            weights: hash of the weights, the key of the saved graphs.
        """
        self._device = torch.device(compute.device)
        on_cpu = self._device.type == "cpu"
        # On a CPU OpenVINO converts what it computes in bfloat16 itself.
        self._dtype = torch.float32 if on_cpu else torch_dtype(compute.dtype)
        # Prompts are encoded in single precision: half precision cannot hold coordinates.
        self._prompts = sam.prompt_encoder.to(self._device)
        pe = self._prompts.get_dense_pe().to(self._dtype)
        decoder = sam.mask_decoder.to(self._device, self._dtype)
        self._no_mask = self._prompts.no_mask_embed.weight[0][:, None, None].to(self._dtype)
        self._stages: TorchStages | OpenVinoStages
        if on_cpu:
            # Imported here: GPU engines do not need OpenVINO.
            from serve_app.engines.sam.stages_openvino import OpenVinoStages

            self._stages = OpenVinoStages(decoder, pe, compute, graphs, weights)
            # Torch does little here: its waiting threads would compete with OpenVINO's.
            self._torch_threads = 1
        else:
            self._stages = TorchStages(decoder, pe)
            self._torch_threads = compute.threads
        # By identity: while its embedding is referenced, no other object has its id.
        self._sides: LRUCache[int, tuple[Embedding, ImageSide]] = LRUCache(_SIDES)
        self._lock = threading.Lock()
        cut.warm_up()
        self._postprocessing = ThreadPoolExecutor(compute.threads, "postprocess")

    @torch.inference_mode()
    def decode_batch(self, jobs: Sequence[DecodeJob]) -> list[tuple[Mask, ...]]:
        """Masks for each job at its image's full size; independent of the batch's other jobs."""
        use_threads(self._torch_threads)
        done: dict[int, Future[tuple[Mask, ...]]] = {}
        pending: deque[Future[tuple[Mask, ...]]] = deque()
        for indices, side in self._chunks(jobs):
            masks = self._decode_chunk([jobs[i] for i in indices], side)
            done.update(zip(indices, masks, strict=True))
            pending.extend(done[i] for i in indices)
            while len(pending) > _MAX_PENDING:
                pending.popleft().result()
        return [done[i].result() for i in range(len(jobs))]

    def _chunks(self, jobs: Sequence[DecodeJob]) -> Iterator[tuple[list[int], ImageSide]]:
        """Jobs that run in one pass, with the image side of each, or the one they share."""
        of_image: dict[int, list[int]] = {}
        for i, job in enumerate(jobs):
            # A mask input is added to the image, so such a prompt has an image side of its own.
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
        plain = (j.embedding is first.embedding and j.prompt.mask_input is None for j in jobs)
        if len(jobs) == 1 or all(plain):
            return self._image_side(first)
        sides = [self._image_side(job) for job in jobs]
        return ImageSide(*(torch.cat(parts) for parts in zip(*sides, strict=True)))

    def _image_side(self, job: DecodeJob) -> ImageSide:
        """The first layer's image side, cached for the most recently used images."""
        mask_input = job.prompt.mask_input
        if mask_input is not None:
            mask = as_tensor(mask_input)[None, None].to(self._device)
            return self._project(job, self._prompts.mask_downscaling(mask)[0].to(self._dtype))
        key = id(job.embedding)
        with self._lock:
            cached = self._sides.get(key)
        if cached is not None:
            return cached[1]
        side = self._project(job, self._no_mask)
        with self._lock:
            self._sides[key] = job.embedding, side
        return side

    def _project(self, job: DecodeJob, dense: Tensor) -> ImageSide:
        embedding = as_tensor(job.embedding.tensors["image_embed"])
        embedding = embedding.to(self._device, self._dtype)
        return self._stages.project((embedding + dense)[None])

    def _decode_chunk(
        self, jobs: Sequence[DecodeJob], side: ImageSide
    ) -> Iterator[Future[tuple[Mask, ...]]]:
        """Each prompt's masks, postprocessed while the next chunk is computed."""
        frames = [Frame.of(j.embedding.height, j.embedding.width, "pad") for j in jobs]
        tokens, padding = _pad_tokens(
            _prompt_tokens(self._prompts, [j.prompt for j in jobs], frames)
        )
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
            if chosen[i]:
                yield self._postprocessing.submit(
                    postprocess_masks, logits[i], scores[i, chosen[i]], frame, job.options
                )
            else:
                yield self._postprocessing.submit(tuple)

    def _upscale(
        self, keys: Tensor, weights: Tensor, chosen: Sequence[Sequence[int]]
    ) -> dict[int, Tensor]:
        """Low-resolution logits ``(M, 256, 256) float32`` of the prompts with a selected mask."""
        rows = [i for i, masks in enumerate(chosen) if masks]
        if not rows:
            return {}
        # Prompts with fewer masks repeat their last one.
        wanted = [[*chosen[i], *[chosen[i][-1]] * (MASKS - len(chosen[i]))] for i in rows]
        picked = torch.stack([weights[i, masks] for i, masks in zip(rows, wanted, strict=True)])
        seen = keys if len(rows) == len(keys) else keys[rows]
        # A copy: the next chunk would overwrite them before they are postprocessed.
        logits = self._stages.upscale(seen, picked).float().clone()
        return {i: logits[n, : len(chosen[i])] for n, i in enumerate(rows)}


def _prompt_tokens(
    encoder: PromptEncoder, prompts: Sequence[Prompt], frames: Sequence[Frame]
) -> list[Tensor]:
    """Each prompt's sparse tokens, ``(n, 256)`` with its own ``n``, equal to SAM's.

    Points come first; without a box SAM adds one "not a point" token; a box adds its corners.
    A prompt with only a mask has no token.
    """
    coords: list[Tensor] = []
    labels: list[int] = []
    lengths: list[int] = []
    for prompt, frame in zip(prompts, frames, strict=True):
        before = len(labels)
        if prompt.point_coords is not None and prompt.point_labels is not None:
            coords.append(torch.from_numpy(frame.to_input(prompt.point_coords)))
            labels.extend(prompt.point_labels.tolist())
            if prompt.box is None:
                coords.append(torch.zeros((1, 2)))
                labels.append(-1)
        if prompt.box is not None:
            coords.append(torch.from_numpy(frame.to_input(prompt.box.reshape(2, 2))))
            labels.extend((2, 3))
        lengths.append(len(labels) - before)
    device = encoder.no_mask_embed.weight.device
    if not labels:
        return [torch.zeros((0, encoder.embed_dim), device=device) for _ in prompts]
    # One positional encoding for all points of all prompts; +0.5 is SAM's pixel centre.
    points = torch.cat(coords).to(device) + 0.5
    kinds = torch.tensor(labels, device=device)
    encoded = encoder.pe_layer.forward_with_coords(points[None], encoder.input_image_size)[0]
    table = torch.cat(
        [e.weight for e in encoder.point_embeddings] + [encoder.not_a_point_embed.weight]
    )
    encoded = torch.where((kinds == -1)[:, None], 0.0, encoded)
    tokens = encoded + table[kinds]  # index -1 is the last row: "not a point"
    return list(torch.split(tokens, lengths))


def _pad_tokens(tokens: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Stack ragged token lists.

    Returns:
        ``(B, T, 256)`` tokens padded with zeros, and ``(B, T) float32`` to add to attention
        scores: 0 where a token is real, minus infinity where it is padding.
    """
    padded = torch.nn.utils.rnn.pad_sequence(list(tokens), batch_first=True)
    lengths = torch.tensor([len(t) for t in tokens], device=padded.device)
    missing = torch.arange(padded.shape[1], device=padded.device)[None] >= lengths[:, None]
    padding = torch.zeros(missing.shape, device=padded.device)
    return padded, padding.masked_fill(missing, float("-inf"))
