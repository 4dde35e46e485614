"""SAM 2 (Ravi et al. 2024) exported to ONNX, as engines over onnxruntime.

The encoder takes one image stretched to 1024 x 1024.  The decoder takes one image and several
prompts with the same number of points, all with a mask or all without: a batch is therefore split
into groups that the model can run in one pass.

It has no single-mask output.  For a request of one mask the best of its three is returned: by
predicted IoU, and with a box by predicted IoU times the IoU of the mask's tight box with the box.
On small objects the predicted IoU alone too often prefers the largest mask.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from torch import Tensor

from serve_app.core.geometry import box_iou
from serve_app.core.inference import DecodeJob, Embedding
from serve_app.core.settings import Compute
from serve_app.core.types import LOW_RES, Float32Array, Mask, RgbArray
from serve_app.engines.devices import use_threads
from serve_app.engines.sam import cut
from serve_app.engines.sam.frame import IMAGE_SIZE, Frame, model_input
from serve_app.engines.sam.postprocess import choose, postprocess_masks

_OUTPUTS = ("high_res_feats_0", "high_res_feats_1", "image_embed")
_MASKS = (0, 1, 2)


def _session(model: Path, compute: Compute) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = compute.threads
    # Spinning threads would take the cores of other replicas on a small machine.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    # The arena would keep the memory of the largest pass: 0.8 GB for an encoder.
    options.enable_cpu_mem_arena = False
    provider = "CPUExecutionProvider" if compute.device == "cpu" else "CUDAExecutionProvider"
    return onnxruntime.InferenceSession(model, options, providers=[provider])


class Sam2OnnxEncoder:
    """SAM 2's image encoder; tensors as in `Embedding`, float32."""

    def __init__(self, model: Path, compute: Compute) -> None:
        self._session = _session(model, compute)

    def encode_batch(self, images: Sequence[RgbArray]) -> list[Embedding]:
        """Embed upright ``(H, W, 3) uint8`` images, one by one: the export has no batch."""
        return [self._encode(image) for image in images]

    def _encode(self, image: RgbArray) -> Embedding:
        values = self._session.run(list(_OUTPUTS), {"image": model_input(image, "stretch")})
        tensors = {name: value[0] for name, value in zip(_OUTPUTS, values, strict=True)}
        return Embedding(tensors, height=image.shape[0], width=image.shape[1])


class Sam2OnnxDecoder:
    """SAM 2's prompt encoder and mask decoder, in chunks: a prompt takes 40 MB in a pass."""

    def __init__(self, model: Path, compute: Compute) -> None:
        self._session = _session(model, compute)
        self._chunk = 4 if compute.device == "cpu" else 64
        cut.warm_up()

    def decode_batch(self, jobs: Sequence[DecodeJob]) -> list[tuple[Mask, ...]]:
        """Masks for each job at its image's full size; independent of the batch's other jobs."""
        groups: defaultdict[tuple[int, int, bool], list[int]] = defaultdict(list)
        points = [_points(job) for job in jobs]
        for i, job in enumerate(jobs):
            masked = job.prompt.mask_input is not None
            groups[id(job.embedding), len(points[i][1]), masked].append(i)
        found: dict[int, tuple[Mask, ...]] = {}
        chunks = (
            group[start : start + self._chunk]
            for group in groups.values()
            for start in range(0, len(group), self._chunk)
        )
        use_threads(1)  # torch does little here; its threads would compete with onnxruntime's
        for indices in chunks:
            coords = np.stack([points[i][0] for i in indices])
            labels = np.stack([points[i][1] for i in indices])
            logits, scores = self._run([jobs[i] for i in indices], coords, labels)
            for row, i in enumerate(indices):
                found[i] = self._postprocess(jobs[i], logits[row], scores[row])
        return [found[i] for i in range(len(jobs))]

    def _run(
        self, jobs: Sequence[DecodeJob], coords: Float32Array, labels: Float32Array
    ) -> tuple[Float32Array, Float32Array]:
        """Prompts of one image: ``(B, 3, 256, 256)`` logits and ``(B, 3)`` predicted IoU."""
        masks = np.zeros((len(jobs), 1, LOW_RES, LOW_RES), dtype=np.float32)
        for row, job in enumerate(jobs):
            if job.prompt.mask_input is not None:
                frame = Frame.of(job.embedding.height, job.embedding.width, "stretch")
                masks[row, 0] = frame.from_padded(job.prompt.mask_input)
        has_mask = np.array([jobs[0].prompt.mask_input is not None], dtype=np.float32)
        features = {name: jobs[0].embedding.tensors[name][None] for name in _OUTPUTS}
        logits, scores = self._session.run(
            ["masks", "iou_predictions"],
            {
                **features,
                "point_coords": coords,
                "point_labels": labels,
                "mask_input": masks,
                "has_mask_input": has_mask,
            },
        )
        return logits, scores

    @staticmethod
    def _postprocess(
        job: DecodeJob, logits: Float32Array, scores: Float32Array
    ) -> tuple[Mask, ...]:
        frame = Frame.of(job.embedding.height, job.embedding.width, "stretch")
        all_logits = torch.from_numpy(logits)
        single: Sequence[int] = _MASKS
        if job.prompt.box is not None and not job.prompt.multimask_output:
            overlap = _box_overlap(all_logits, frame, job.prompt.box)
            single = (int(np.argmax(scores * overlap)),)
        chosen = choose(scores.tolist(), single, _MASKS, job)
        if not chosen:
            return ()
        picked = torch.from_numpy(scores[chosen])
        return postprocess_masks(all_logits[chosen], picked, frame, job.options)


def _box_overlap(logits: Tensor, frame: Frame, box: Float32Array) -> Float32Array:
    """``(M,)`` IoU of the tight box of each of ``(M, 256, 256)`` masks with an XYXY box."""
    boxes = np.array([cut.cut_mask(one, frame).bbox for one in logits.numpy()], np.float64)
    boxes[:, 2:] += boxes[:, :2]
    return box_iou(boxes, box).astype(np.float32)


def _points(job: DecodeJob) -> tuple[Float32Array, Float32Array]:
    """A prompt as SAM 2's input: ``(N, 2)`` in the 1024 square and ``(N,)`` labels.

    A box is its two corners, labelled 2 and 3, before the points; a mask alone needs one padding
    point (label -1).
    """
    prompt = job.prompt
    frame = Frame.of(job.embedding.height, job.embedding.width, "stretch")
    coords: list[Float32Array] = []
    labels: list[float] = []
    if prompt.box is not None:
        coords.append(frame.to_input(prompt.box.reshape(2, 2)))
        labels += [2, 3]
    if prompt.point_coords is not None and prompt.point_labels is not None:
        coords.append(frame.to_input(prompt.point_coords))
        labels += prompt.point_labels.tolist()
    if not labels:
        coords.append(np.full((1, 2), IMAGE_SIZE / 2, dtype=np.float32))
        labels.append(-1)
    return np.concatenate(coords), np.array(labels, dtype=np.float32)
