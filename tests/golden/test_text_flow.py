"""Text to masks through the whole flow, with real SAM weights and both scoring engines."""

from __future__ import annotations

import numpy as np
import pytest

from serve_app.capabilities import SegmentRequest, TextQuery
from serve_app.core.rle import encode_rle
from serve_app.core.settings import (
    Compute,
    DecoderSettings,
    EncoderSettings,
    GraphSettings,
    TextSettings,
    VariantSettings,
)
from serve_app.local import build_local_service
from serve_tools.evaluation.metrics import iou_matrix
from serve_tools.synthetic.scenes import all_captions, draw_scene
from tests.tiny_clip import captions, tiny_clip_settings

pytestmark = pytest.mark.weights

SEED = 7


async def test_open_clip_finds_the_named_object_among_segmented_candidates() -> None:
    compute = Compute(threads=2)
    fast = VariantSettings(
        model="vit_t",
        encoder=EncoderSettings(compute=compute),
        decoder=DecoderSettings(compute=compute),
    )
    text = TextSettings(engine="open_clip", compute=compute, open_clip=tiny_clip_settings())
    service = build_local_service(GraphSettings(variants={"fast": fast}, text=text))
    scene = draw_scene(SEED)
    absent = next(c for c in all_captions() if c not in captions(scene))
    query = TextQuery(text=(*captions(scene), absent), points_per_side=12)

    result = await service.segment(SegmentRequest(image=scene.pixels, task=query))

    assert result.text_engine == "open_clip"
    found = 0
    for answer, item in zip(result.results, scene.objects, strict=False):
        if answer.masks:
            best = max(answer.masks, key=lambda m: m.text_score or 0.0)
            found += float(iou_matrix([best.rle], [encode_rle(item.mask)])[0, 0]) > 0.7
    # SAM does not propose each small shape; of those that it does, the right one must be named.
    assert found >= 0.8 * len(scene.objects)
    missing = result.results[-1]
    assert missing.text == absent
    assert missing.present is False
    assert missing.masks == ()
    assert missing.best_score is not None
    assert missing.best_score < 0.5
    assert np.isfinite(missing.best_score)
