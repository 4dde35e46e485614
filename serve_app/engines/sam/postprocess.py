"""From low-resolution logits to the masks that are answered; shared by SAM and SAM 2."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch import Tensor

from serve_app.core.rle import encode_part
from serve_app.core.types import DecodeJob, DecodeOptions, Mask
from serve_app.engines.sam.frame import Frame
from serve_app.engines.sam.threshold import threshold_mask


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


def postprocess_masks(
    logits: Tensor, scores: Tensor, frame: Frame, options: DecodeOptions
) -> tuple[Mask, ...]:
    """Bring the chosen masks of one prompt to the image's size and encode them.

    Args:
        logits: ``(M, 256, 256) float32`` low-resolution logits.
        scores: ``(M,)`` their predicted IoU.
        frame: the image's place in the model's square.
        options: thresholds and what to return.
    """
    results = []
    for low_res, score in zip(logits.cpu().numpy(), scores.tolist(), strict=True):
        part = threshold_mask(low_res, frame, options.stability_score_offset)
        # IoU of the two cuts, one of which holds the other.  0 where even the looser is empty: so
        # a threshold drops an empty mask, as it drops the NaN of `segment_anything`.
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
