"""Converts low-resolution logits to full-size masks; shared by SAM and SAM 2."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch import Tensor

from serve_app.core.inference import DecodeJob, DecodeOptions
from serve_app.core.rle import encode_part
from serve_app.core.types import Mask
from serve_app.engines.sam.frame import Frame
from serve_app.engines.sam.threshold import threshold_mask


def choose(
    scores: Sequence[float], single: Sequence[int], multi: Sequence[int], job: DecodeJob
) -> list[int]:
    """Select the masks of a prompt that are returned.

    Args:
        scores: predicted IoU of every mask of the model.
        single: the candidates for a single mask; the best of them is selected.
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


def postprocess_masks(
    logits: Tensor, scores: Tensor, frame: Frame, options: DecodeOptions
) -> tuple[Mask, ...]:
    """Scale the selected masks of one prompt to the image's size and encode them.

    Args:
        logits: ``(M, 256, 256) float32`` low-resolution logits.
        scores: ``(M,)`` their predicted IoU.
        frame: the image's place in the model's square input.
        options: thresholds and what to return.
    """
    results = []
    for low_res, score in zip(logits.cpu().numpy(), scores.tolist(), strict=True):
        part = threshold_mask(low_res, frame, options.stability_score_offset)
        # IoU of the nested masks at both thresholds.  0 if both are empty, so that
        # stability_score_thresh drops an empty mask; segment_anything drops it as a NaN.
        stability = part.inner / max(part.outer, 1)
        threshold = options.stability_score_thresh
        if threshold is not None and stability < threshold:
            continue
        rle, bbox, area = encode_part(part.columns, part.x, part.y, (frame.height, frame.width))
        results.append(
            Mask(
                rle=rle,
                score=score,
                stability_score=stability,
                bbox=bbox,
                area=area,
                low_res_logits=low_res.astype(np.float16) if options.return_logits else None,
            )
        )
    return tuple(results)
