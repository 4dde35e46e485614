"""From low-resolution logits to the masks that are answered; shared by SAM and SAM 2."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from pycocotools import mask as coco
from torch import Tensor

from serve_app.compute.sam.frame import Frame
from serve_app.domain.rle import Rle, rle_area, rle_bbox
from serve_app.domain.types import DecodeJob, DecodeOptions, Mask


def choose(
    scores: Sequence[float], single: Sequence[int], multi: Sequence[int], job: DecodeJob
) -> list[int]:
    """Which of a prompt's masks to finish.

    Args:
        scores: predicted IoU of every mask the model made.
        single: the candidates when one mask is asked for; the best of them is taken.
        multi: the candidates of ``multimask_output``.
        job: the prompt and its thresholds.

    Returns:
        Indices into ``scores``, in the model's order.
    """
    options = job.options
    chosen = list(multi if job.prompt.multimask_output else single)
    if not job.prompt.multimask_output:
        chosen = [max(chosen, key=lambda i: scores[i])]
    if options.pred_iou_thresh is not None:
        chosen = [i for i in chosen if scores[i] > options.pred_iou_thresh]
    return chosen


def finish_masks(
    logits: Tensor, scores: Tensor, frame: Frame, options: DecodeOptions
) -> tuple[Mask, ...]:
    """Bring the chosen masks of one prompt to the image's size and encode them.

    Args:
        logits: ``(M, 256, 256) float32`` low-resolution logits.
        scores: ``(M,)`` their predicted IoU.
        frame: the image's place in the model's square.
        options: thresholds and what to return.
    """
    full = frame.to_image(logits)
    # Transposed, the masks lie in memory as COCO's column-major run lengths read them.
    masks = (full > 0).transpose(1, 2).contiguous().cpu().numpy()
    stability = _stability(full, options.stability_score_offset)
    encoded = coco.encode(masks.view(np.uint8).transpose(2, 1, 0))
    results = []
    for i, item in enumerate(encoded):
        threshold = options.stability_score_thresh
        if threshold is not None and not stability[i] >= threshold:
            continue
        rle = Rle(size=(frame.height, frame.width), counts=item["counts"])
        low_res = logits[i].to(torch.float16).cpu().numpy() if options.return_logits else None
        results.append(
            Mask(
                rle=rle,
                score=float(scores[i]),
                stability_score=stability[i],
                bbox=rle_bbox(rle),
                area=rle_area(rle),
                low_res_logits=low_res,
            )
        )
    return tuple(results)


def _stability(full: Tensor, offset: float) -> list[float]:
    """IoU of each mask cut at ``+offset`` and ``-offset``; 0 where even the looser is empty.

    So a threshold drops an empty mask, as it drops the NaN of `segment_anything`.
    """
    inner = (full > offset).sum(dim=(1, 2))
    outer = (full > -offset).sum(dim=(1, 2))
    # Single precision would put 0.95 below a threshold of 0.95.
    ratio = inner.double() / outer.clamp(min=1)
    return [float(value) for value in ratio.cpu()]
