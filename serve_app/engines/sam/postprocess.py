"""Which of a prompt's masks are returned, and as what; shared by SAM and SAM 2."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch import Tensor

from serve_app.core.inference import DecodeJob, DecodeOptions
from serve_app.core.types import Mask
from serve_app.engines.sam.cut import cut_mask
from serve_app.engines.sam.frame import Frame


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
    multimask, threshold = job.prompt.multimask_output, job.options.pred_iou_thresh
    chosen = multi if multimask else [max(single, key=lambda i: scores[i])]
    return [i for i in chosen if threshold is None or scores[i] > threshold]


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
        cut = cut_mask(low_res, frame, options.stability_score_offset)
        # IoU of the nested masks at both thresholds.  0 if both are empty, so that
        # stability_score_thresh drops an empty mask; segment_anything drops it as a NaN.
        stability = cut.inner / max(cut.outer, 1)
        threshold = options.stability_score_thresh
        if threshold is not None and stability < threshold:
            continue
        returned = frame.to_padded(low_res).astype(np.float16) if options.return_logits else None
        results.append(
            Mask(
                rle=cut.rle,
                score=score,
                stability_score=stability,
                bbox=cut.bbox,
                area=cut.area,
                low_res_logits=returned,
            )
        )
    return tuple(results)
